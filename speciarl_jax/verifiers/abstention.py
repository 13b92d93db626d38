"""Recognizes answers that decline to name anything, by a grammar over `parsing.phrase`.

`GRAMMAR` is one regular expression for whole phrases: `re.fullmatch` decides on the host, and the
same expression as a table (`automaton`) on a device. A phrase of more than `MAX_BYTES` is none.
A label tree's own names come first: a name that the grammar would accept still counts as the name.
"""

import functools
import re

from speciarl_jax.verifiers import dfa, parsing

MAX_BYTES = 96

# In phrases, apostrophes within words are gone, and a comma stands for every list mark.
_WORD = "[^ ,&]+"
# Any word but "but", after which a guess may follow.
_NOT_BUT = "([^ ,&b][^ ,&]*|b|b[^ ,&u][^ ,&]*|bu|bu[^ ,&t][^ ,&]*|but[^ ,&]+)"
_REST = f"( {_NOT_BUT})*"
_IMAGE = "(image|photo|photograph|picture|pic|angle|view|shot)"
_THING = (
    "(species|breed|type|kind|sort|variety|cultivar|category|class|label|name|identity|model|make"
    "|brand|year|version|variant|subspecies|genus|family|bird|dog|cat|animal|pet|creature|plant|flower"
    "|car|vehicle|truck|aircraft|airplane|plane|airliner|jet|food|dish|meal|ingredient|item|object"
    "|thing|subject|emoji|symbol|image|photo|photograph|picture|answer|it)"
)
_ADVERB = (
    "((still|really|completely|entirely|totally|quite|just|simply|honestly|currently|confidently"
    "|definitively|reliably|accurately|positively|clearly|definitely|fully|absolutely|too|very|so"
    "|somewhat|rather|a bit|exactly|certainly|conclusively|precisely|visually|easily|properly) )*"
)
_I = "((i|we|one|you|im|i am|were|we are) )?"
_CANNOT = (
    "(can ?not|can ?t|could ?not|could ?nt|do not|don ?t|did ?not|did ?nt|will not|wont|fail to"
    "|failed to|((am|is|was|being) )?(unable|not able) to|would not be able to)"
)
_VERB = (
    "(tell|say|determine|identify|recogni[sz]e|know|name|classify|distinguish|discern|specify"
    "|make out|figure out|see|ascertain|establish|answer|guess|decide|pinpoint|verify|confirm"
    "|view|help|assist|comment|find|match|access|open|process|analy[sz]e"
    "|be (sure|certain|confident)|provide (an? )?(answer|identification|label|name)"
    "|give (an? )?(answer|identification|label|name))"
)
_BE = "(be )?(determined|identified|recogni[sz]ed|told|named|classified|distinguished|discerned"
_BE += "|specified|seen|ascertained|established|known|verified)"
_STATE = (
    "(unknown|unidentified|unidentifiable|unrecogni[sz]ed|unrecogni[sz]able|undetermined"
    "|undeterminable|indeterminate|indeterminable|indistinguishable|unspecified|inconclusive"
    "|unclear|uncertain|unsure|unnamed|not (known|identifiable|identified|determinable|determined"
    "|recogni[sz]able|specified|available|applicable|visible|clear|certain|sure|confident|possible"
    f"|discernible|distinguishable|provided)|to be determined|({_CANNOT}|not) {_ADVERB}{_BE})"
)
_THIS = (
    f"((the|this|that|its|it|an|a|and|or|exact|specific|precise|true|correct|image|of|{_THING}) )*"
)
_IS = "((is|are|was|appears|seems|remains|looks) )?"

_CLAUSES = (
    "none( of (these|those|them|the above|the options|the choices|the given options))?",
    "n,a|na|idk|dunno|null|nil|no ((clear|definite|definitive|certain|good) )?"
    "(answer|label|match|comment|identification|response)",
    # "I cannot tell which bird this is"
    f"{_I}{_ADVERB}{_CANNOT} {_ADVERB}{_VERB}{_REST}",
    f"{_I}{_ADVERB}don ?t have (enough|sufficient|any){_REST}",
    # "not sure what this is", "I am uncertain"
    f"{_I}{_ADVERB}(not|un) ?{_ADVERB}(sure|certain|confident|clear){_REST}",
    f"{_I}(have )?(absolutely )?no (idea|clue){_REST}",
    f"(id |i would |i )?(rather not|prefer not to) {_VERB}{_REST}",
    # "I would need a clearer image", "more information is needed"
    "((id|i|i would|i will|we|we would|it would) )?(need|require) ((to see|to have) )?"
    "((a|an|the|some|much) )?(more|clearer|better|closer|sharper|another|additional|further|larger"
    f"|higher){_REST}",
    "(more|further|additional|better|clearer) (information|details?|context|images?|photos?)"
    f" (is|are|would be) (needed|required|necessary){_REST}",
    # "there is no bird in this image", "no discernible car"
    f"((there is|there are|theres|i see) )?no {_THING} ((is|are) )?"
    f"(in|on|visible|present|shown|seen|discernible|identifiable){_REST}",
    "((there is|there are|theres|i see) )?no (visible|discernible|identifiable|recogni[sz]able"
    f"|distinguishable|apparent) {_THING}{_REST}",
    # "the image does not show a bird"
    f"(the|this) {_IMAGE} (does not|doesnt|did not|didnt) "
    f"(show|provide|contain|depict|have|offer|give|include|allow|display|feature){_REST}",
    # "identification is not possible", "no identification possible"
    f"((an|the) )?((exact|positive|specific|precise|accurate|certain) )?identification {_IS}"
    f"{_ADVERB}(not possible|impossible|uncertain|unclear|difficult|inconclusive){_REST}",
    f"no identification {_IS}possible{_REST}",
    # "a bird that I cannot identify"
    f"((a|an|some|the|some (kind|type|sort) of) )?{_THING} (that )?(i|we) {_CANNOT} {_VERB}{_REST}",
    f"(unknown|unidentified|unspecified|uncertain) {_THING} (and|or) {_THING}",
    # "the exact species is unknown", "bird unidentified", "it cannot be determined"
    f"{_THIS}{_IS}{_ADVERB}{_STATE}"
    f"( (from|in|with|without|by|at|based on|due to|because|given|which|what|whether|if){_REST})?",
    # "an unknown bird", "unidentified breed of dog"
    f"(this is )?((an|a|the|some) )?{_ADVERB}"
    "(unknown|unidentified|unidentifiable|unrecogni[sz]ed|unrecogni[sz]able|undetermined"
    f"|indeterminate|unspecified|uncertain) {_WORD}( {_WORD})?( of ((the|a|an) )?{_WORD}"
    f"( {_WORD})?)?",
    # "hard to say", "it is impossible to tell from this image"
    f"((it is|its|it s|this is|that is|thats|would be|it would be) )?{_ADVERB}"
    f"(hard|difficult|impossible|not possible|tough|tricky|not easy)( for me)? to {_ADVERB}{_VERB}"
    f"{_REST}",
    # "not enough information", "the image is too blurry"
    "((there is|there are|theres) )?(not enough|insufficient|too little|no) "
    f"((visual|visible|distinguishing) )?(information|details?|context|data|evidence|clarity"
    f"|resolution|features){_REST}",
    f"((the|this) )?{_THING} {_IS}((too|very|so|quite|extremely) )?"
    f"(blurry|blurred|dark|small|far away|far|distant|pixelated|obscured|fuzzy|low quality"
    f"|low resolution)( (to|for|from|in){_REST})?",
    "too (blurry|blurred|dark|small|far away|distant|pixelated|obscured|fuzzy)( to tell)?",
)
_SORRY = (
    "(((i am|im) )?(so |very )?(sorry|afraid|apologies|unfortunately|i apologi[sz]e)(,? but)?,? )*"
)
_SORRY += "(that )?"
_CLAUSE = f"({'|'.join(_CLAUSES)})"
# "As an AI model, I cannot", "without more context, I cannot"
_AS = (
    "((as|i am|im) an ai(( (language|vision))? (model|assistant))?( and)?,? "
    "|without (more|further|additional|any) (context|information|details?),? "
    f"|(based on|from|in|given) (the|this) ((provided|given) )?{_IMAGE}"
    "( (alone|provided|given))?,? )?"
)
# After a comma only why it declines, so that no guess can follow.
_WHY = (
    "(, ((as|because|since|but) )?(sorry|im sorry|(there is )?not enough (information|detail)"
    f"|((the|this) )?{_THING} is {_ADVERB}"
    "(blurry|dark|unclear|small|far away|not clear|low quality|obscured)))?"
)
GRAMMAR = f"((a|an|the) )?{_SORRY}{_AS}{_CLAUSE}{_WHY}"


def abstains(phrase: bytes) -> bool:
    """Whether an answer declines; `phrase` is its `parsing.phrase`."""
    return len(phrase) <= MAX_BYTES and _matcher().fullmatch(phrase) is not None


@functools.cache
def _matcher() -> re.Pattern[bytes]:
    # Compiled when it is needed: that takes as long as importing JAX.
    return re.compile(GRAMMAR.encode())


def text_abstains(text: str) -> bool:
    """Whether an answer or a name declines."""
    return abstains(parsing.phrase(text))


@functools.cache
def automaton() -> dfa.Dfa:
    """Compiles `GRAMMAR` to a table; once a process."""
    return dfa.compile(GRAMMAR)
