"""What an error came from, also where it lies behind itself."""

from speciarl_jax.runtime import exit_codes, interrupts
from speciarl_jax.runtime.messages import chain


def behind(error, cause=None, context=None):
    error.__cause__, error.__context__ = cause, context
    return error


def test_a_chain_is_the_error_and_what_it_came_from_in_order():
    first, second = KeyError("first"), OSError("second")
    third = behind(ValueError("third"), cause=behind(second, context=first))
    assert list(chain(third)) == [third, second, first] and not list(chain(None))


def test_an_error_that_lies_behind_itself_ends_the_chain():
    # A future raises one and the same error each time that it is asked.
    one, other = OSError("one"), TimeoutError("other")
    behind(one, cause=other)
    behind(other, context=one)
    assert list(chain(one)) == [one, other]
    assert not interrupts.is_behind(one) and exit_codes.code_of(one, False) == 1


def test_a_ctrl_c_is_found_wherever_it_lies():
    assert (
        interrupts.is_behind(behind(OSError(), context=behind(ValueError(), cause=EOFError())))
        is False
    )
    assert interrupts.is_behind(behind(OSError(), context=KeyboardInterrupt()))
