"""Reading collectives from the text of compiled programs."""

import pytest

from speciarl_jax.tools.plan import hlo

# As the TPU compiler writes it, but for what no one reads here.
TPU = """\
HloModule jit_f, is_scheduled=true

%fused (p.1: bf16[8,64]) -> bf16[8,128] {
  %p.1 = bf16[8,64]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[8,128]{1,0:T(8,128)} all-gather(%p.1), channel_id=1, dimensions={1}
}

%inner_body (p.2: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %p.2 = (s32[], bf16[8,64]{1,0}) parameter(0)
  %g.1 = bf16[8,64]{1,0} get-tuple-element(%p.2), index=1
  %f.1 = bf16[8,128]{1,0} fusion(%g.1), kind=kLoop, calls=%fused, metadata={op_name="x"}
  ROOT %t.1 = (s32[], bf16[8,64]{1,0}) tuple(%g.0, %g.1)
}

%inner_condition (p.3: (s32[], bf16[8,64])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(28)
  %p.3 = (s32[], bf16[8,64]{1,0}) parameter(0)
  %g.2 = s32[] get-tuple-element(%p.3), index=0
  ROOT %lt.1 = pred[] compare(%g.2, %constant.5), direction=LT
}

%open_body (p.4: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %p.4 = (s32[], bf16[8,64]{1,0}) parameter(0)
  %g.3 = f32[16]{0} get-tuple-element(%p.4), index=1
  %all-reduce-start.1 = f32[16]{0} all-reduce-start(%g.3), to_apply=%add, metadata={op_name="y"}
  %all-reduce-done.1 = f32[16]{0} all-reduce-done(%all-reduce-start.1)
  %w.2 = (s32[], bf16[8,64]{1,0}) while(%p.4), condition=%inner_condition, body=%inner_body
  ROOT %t.2 = (s32[], bf16[8,64]{1,0}) tuple(%g.3, %g.3)
}

%open_condition (p.5: (s32[], bf16[8,64])) -> pred[] {
  %constant.6 = s32[]{:T(128)} constant(2048)
  %lt.2 = pred[] compare(%g.4, %constant.6), direction=LT
  ROOT %and.1 = pred[] and(%lt.2, %g.5)
}

ENTRY %main (p.6: bf16[8,64]) -> bf16[8,64] {
  %p.6 = bf16[8,64]{1,0} parameter(0)
  %w.1 = (s32[], bf16[8,64]{1,0}) while(%t.3), condition=%open_condition, body=%open_body
  %w.3 = (s32[], bf16[8,64]{1,0}) while(%w.1), condition=%open_condition, body=%open_body
  ROOT %r = bf16[8,64]{1,0} get-tuple-element(%w.3), index=1
}
"""
# How the CPU, TPU and GPU compilers write what they have joined, or begin ahead of its use.
JOINED = """\
ENTRY %main (a: f32[64,8], b: bf16[32], c: f32[16,8]) -> f32[64,8] {
  %a = f32[64,8]{1,0:T(8,128)} parameter(0)
  %b = bf16[32]{0:T(256)(128)(2,1)} parameter(1)
  %c = f32[16,8]{1,0} parameter(2)
  ROOT %r = LINE, channel_id=1, replica_groups={{0,1,2,3}}, metadata={op_name="j"}
}
"""
A, B, C = 64 * 8 * 4, 32 * 2, 16 * 8 * 4
GATHER, REDUCE = 8 * 128 * 2, 16 * 4


def test_collectives_are_counted_as_often_as_their_loops_turn():
    found, open_loops = hlo.collectives(TPU, open_turns=10)
    assert [(c.kind, c.bytes_each, c.count) for c in found] == [
        ("all-gather", GATHER, 28 * 10),
        ("all-reduce", REDUCE, 10),
    ]
    assert found[0].total_bytes == GATHER * 280 and found[1].source == "y"
    # The second loop goes on where the first has stopped: it gets no turns of its own.
    assert open_loops == 2


def test_a_number_of_turns_that_the_compiler_noted_is_taken():
    noted = TPU.replace(
        "body=%inner_body", 'body=%inner_body, backend_config={"known_trip_count":{"n":"3"}}'
    )
    found, _ = hlo.collectives(noted, open_turns=10)
    assert {c.kind: c.count for c in found} == {"all-gather": 30, "all-reduce": 10}


def test_an_operation_that_only_waits_or_reads_is_no_collective():
    quiet = TPU.replace("all-reduce-start(", "copy-start(").replace("all-gather(", "copy(")
    assert hlo.collectives(quiet, open_turns=10)[0] == []


@pytest.mark.parametrize("kind", hlo.KINDS)
def test_every_kind_is_known(kind):
    text = TPU.replace("all-gather(", f"{kind}(")
    assert kind in {c.kind for c in hlo.collectives(text)[0]}


@pytest.mark.parametrize(
    "line, size",
    [
        ("(f32[64,8]{1,0:T(8,128)}, bf16[32]{0}) all-reduce(%a, %b), to_apply=%add", A + B),
        ("(f32[64,8]{1,0}, bf16[32]{0}) all-reduce-start(%a, %b), to_apply=%add", A + B),
        ("((f32[64,8]), f32[64,8]{1,0}, u32[]{:S(2)}) all-reduce-start(%a)", A),
        ("(f32[64,8]{1,0}, f32[64,8]{1,0}) all-gather(%c, %c), dimensions={0}", 2 * A),
        ("(f32[16,8]{1,0:T(8,128)}, f32[64,8]{1,0:T(8,128)S(1)}) all-gather-start(%c)", A),
        (
            "((f32[16,8], bf16[32]{0}), (f32[64,8]{1,0}, bf16[128]{0})) all-gather-start(%c, %b)",
            A + 4 * B,
        ),
        ("f32[16,8]{1,0} reduce-scatter(%a), dimensions={0}", A),
        ("f32[16,8]{1,0} reduce-scatter(f32[64,8]{1,0:T(8,128)} %a), dimensions={0}", A),
        ("((f32[64,8]{1,0}), f32[16,8]{1,0}, u32[]) reduce-scatter-start(%a)", A),
        (
            "(f32[16,8], f32[16,8], f32[16,8], /*index=3*/f32[16,8]) "
            "all-to-all(%c, %c, %c, /*index=3*/%c)",
            4 * C,
        ),
        ("(f32[64,8], f32[64,8], u32[]{:S(2)}, u32[]) collective-permute-start(%a)", A),
    ],
)
def test_all_arrays_of_an_exchange_count_and_the_larger_side(line, size):
    [found], _ = hlo.collectives(JOINED.replace("LINE", line))
    assert (found.bytes_each, found.count, found.source) == (size, 1, "j")
