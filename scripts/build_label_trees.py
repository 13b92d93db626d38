"""Writes the label trees of the published data sets: names as people say them, and what is above.

    python -m scripts.build_label_trees

Class names come from tensorflow-datasets, those of the birds from this file. What is between a
class and its group is read off the names ("Tree Swallow" is a swallow, "Acura RL Sedan 2012" an
Acura) or listed here. The aircraft's tree comes from their own archive (`data/fgvc_aircraft.py`).
"""

import importlib
import json
import pathlib
import re

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "speciarl_jax" / "data" / "label_trees"

# Class names of CUB-200-2011 in the order of its numbers, as in its classes.txt.
BIRDS = """
Black_footed_Albatross Laysan_Albatross Sooty_Albatross Groove_billed_Ani Crested_Auklet
Least_Auklet Parakeet_Auklet Rhinoceros_Auklet Brewer_Blackbird Red_winged_Blackbird
Rusty_Blackbird Yellow_headed_Blackbird Bobolink Indigo_Bunting Lazuli_Bunting Painted_Bunting
Cardinal Spotted_Catbird Gray_Catbird Yellow_breasted_Chat Eastern_Towhee Chuck_will_Widow
Brandt_Cormorant Red_faced_Cormorant Pelagic_Cormorant Bronzed_Cowbird Shiny_Cowbird Brown_Creeper
American_Crow Fish_Crow Black_billed_Cuckoo Mangrove_Cuckoo Yellow_billed_Cuckoo
Gray_crowned_Rosy_Finch Purple_Finch Northern_Flicker Acadian_Flycatcher Great_Crested_Flycatcher
Least_Flycatcher Olive_sided_Flycatcher Scissor_tailed_Flycatcher Vermilion_Flycatcher
Yellow_bellied_Flycatcher Frigatebird Northern_Fulmar Gadwall American_Goldfinch European_Goldfinch
Boat_tailed_Grackle Eared_Grebe Horned_Grebe Pied_billed_Grebe Western_Grebe Blue_Grosbeak
Evening_Grosbeak Pine_Grosbeak Rose_breasted_Grosbeak Pigeon_Guillemot California_Gull
Glaucous_winged_Gull Heermann_Gull Herring_Gull Ivory_Gull Ring_billed_Gull Slaty_backed_Gull
Western_Gull Anna_Hummingbird Ruby_throated_Hummingbird Rufous_Hummingbird Green_Violetear
Long_tailed_Jaeger Pomarine_Jaeger Blue_Jay Florida_Jay Green_Jay Dark_eyed_Junco Tropical_Kingbird
Gray_Kingbird Belted_Kingfisher Green_Kingfisher Pied_Kingfisher Ringed_Kingfisher
White_breasted_Kingfisher Red_legged_Kittiwake Horned_Lark Pacific_Loon Mallard Western_Meadowlark
Hooded_Merganser Red_breasted_Merganser Mockingbird Nighthawk Clark_Nutcracker
White_breasted_Nuthatch Baltimore_Oriole Hooded_Oriole Orchard_Oriole Scott_Oriole Ovenbird
Brown_Pelican White_Pelican Western_Wood_Pewee Sayornis American_Pipit Whip_poor_Will Horned_Puffin
Common_Raven White_necked_Raven American_Redstart Geococcyx Loggerhead_Shrike Great_Grey_Shrike
Baird_Sparrow Black_throated_Sparrow Brewer_Sparrow Chipping_Sparrow Clay_colored_Sparrow
House_Sparrow Field_Sparrow Fox_Sparrow Grasshopper_Sparrow Harris_Sparrow Henslow_Sparrow
Le_Conte_Sparrow Lincoln_Sparrow Nelson_Sharp_tailed_Sparrow Savannah_Sparrow Seaside_Sparrow
Song_Sparrow Tree_Sparrow Vesper_Sparrow White_crowned_Sparrow White_throated_Sparrow
Cape_Glossy_Starling Bank_Swallow Barn_Swallow Cliff_Swallow Tree_Swallow Scarlet_Tanager
Summer_Tanager Artic_Tern Black_Tern Caspian_Tern Common_Tern Elegant_Tern Forsters_Tern Least_Tern
Green_tailed_Towhee Brown_Thrasher Sage_Thrasher Black_capped_Vireo Blue_headed_Vireo
Philadelphia_Vireo Red_eyed_Vireo Warbling_Vireo White_eyed_Vireo Yellow_throated_Vireo
Bay_breasted_Warbler Black_and_white_Warbler Black_throated_Blue_Warbler Blue_winged_Warbler
Canada_Warbler Cape_May_Warbler Cerulean_Warbler Chestnut_sided_Warbler Golden_winged_Warbler
Hooded_Warbler Kentucky_Warbler Magnolia_Warbler Mourning_Warbler Myrtle_Warbler Nashville_Warbler
Orange_crowned_Warbler Palm_Warbler Pine_Warbler Prairie_Warbler Prothonotary_Warbler
Swainson_Warbler Tennessee_Warbler Wilson_Warbler Worm_eating_Warbler Yellow_Warbler
Northern_Waterthrush Louisiana_Waterthrush Bohemian_Waxwing Cedar_Waxwing
American_Three_toed_Woodpecker Pileated_Woodpecker Red_bellied_Woodpecker Red_cockaded_Woodpecker
Red_headed_Woodpecker Downy_Woodpecker Bewick_Wren Cactus_Wren Carolina_Wren House_Wren Marsh_Wren
Rock_Wren Winter_Wren Common_Yellowthroat
""".split()

_PARTS_OF_BIRDS = (
    "backed bellied billed breasted capped cockaded colored crowned eating eyed faced footed "
    "headed legged necked sided tailed throated toed winged"
).split()
_HYPHEN = re.compile(rf" ({'|'.join(_PARTS_OF_BIRDS)})\b")
_PERSONS = {"Le Conte": "LeConte's", "Forsters": "Forster's", "Harris": "Harris's"} | {
    name: f"{name}'s"
    for name in (
        "Brewer Brandt Heermann Anna Clark Scott Baird Henslow Lincoln Nelson Swainson Wilson "
        "Bewick"
    ).split()
}
# Class -> name, synonyms, hyponyms, words below the group (nearest first).
_ODD_BIRDS = {
    "Chuck_will_Widow": ("Chuck-will's-widow", ["Chuck will Widow"], [], ["nightjar"]),
    "Whip_poor_Will": ("Whip-poor-will", ["Eastern Whip-poor-will"], [], ["nightjar"]),
    "Geococcyx": ("Roadrunner", ["Geococcyx", "Greater Roadrunner"], [], ["cuckoo"]),
    "Sayornis": (
        "Phoebe",
        ["Sayornis"],
        ["Black Phoebe", "Eastern Phoebe", "Say's Phoebe"],
        ["tyrant flycatcher", "flycatcher", "songbird"],
    ),
    "Black_and_white_Warbler": ("Black-and-white Warbler", [], [], ["warbler", "songbird"]),
}
_MORE_BIRD_NAMES = {
    "Artic_Tern": ["Arctic Tern"],
    "Cardinal": ["Northern Cardinal", "Red Cardinal"],
    "Mockingbird": ["Northern Mockingbird"],
    "Nighthawk": ["Common Nighthawk"],
    "Myrtle_Warbler": ["Yellow-rumped Warbler"],
    "White_Pelican": ["American White Pelican"],
    "Eared_Grebe": ["Black-necked Grebe"],
    "Florida_Jay": ["Florida Scrub Jay"],
    "Frigatebird": ["Magnificent Frigatebird"],
    "Green_Violetear": ["Mexican Violetear"],
    "Nelson_Sharp_tailed_Sparrow": ["Nelson's Sparrow"],
    "Tree_Sparrow": ["American Tree Sparrow"],
    "White_breasted_Kingfisher": ["White-throated Kingfisher"],
    "Mallard": ["Mallard Duck"],
    "Bank_Swallow": ["Sand Martin"],
    "Common_Raven": ["Northern Raven"],
}
# Last word of a name -> what it belongs to, nearest first.
_KINDS_OF_BIRDS = {
    "albatross fulmar frigatebird cormorant jaeger": ["seabird"],
    "auklet puffin guillemot": ["auk", "seabird"],
    "gull tern": ["seabird"],
    "kittiwake": ["gull", "seabird"],
    "loon grebe pelican": ["waterbird"],
    "gadwall mallard merganser": ["duck", "waterfowl", "waterbird"],
    "ani cuckoo": ["cuckoo"],
    "nighthawk": ["nightjar"],
    "violetear hummingbird": ["hummingbird"],
    "flicker": ["woodpecker"],
    "kingbird flycatcher pewee": ["tyrant flycatcher", "flycatcher", "songbird"],
    "crow raven jay nutcracker": ["corvid", "songbird"],
    "goldfinch": ["finch", "songbird"],
    "junco towhee": ["sparrow", "songbird"],
    "ovenbird waterthrush redstart yellowthroat": ["warbler", "wood warbler", "songbird"],
    "bobolink meadowlark cowbird grackle": ["blackbird", "songbird"],
    "finch sparrow warbler wren vireo swallow thrasher tanager oriole grosbeak bunting blackbird "
    "cardinal catbird chat creeper lark mockingbird nuthatch pipit shrike starling waxwing": [
        "songbird"
    ],
}


def birds():
    kinds = {word: above for words, above in _KINDS_OF_BIRDS.items() for word in words.split()}
    for class_name in BIRDS:
        raw = class_name.replace("_", " ")
        if class_name in _ODD_BIRDS:
            name, synonyms, hyponyms, above = _ODD_BIRDS[class_name]
        else:
            name = _HYPHEN.sub(r"-\1", raw).replace("Sharp-tailed", "sharp-tailed")
            for person, owner in _PERSONS.items():
                name = re.sub(rf"^{person}\b", owner, name)
            name = name.replace("Artic ", "Arctic ")
            synonyms, hyponyms = [], []
            head = raw.split()[-1].lower()
            above = ([head] if " " in raw else []) + kinds.get(head, [])
        synonyms = [raw, name.replace("'", ""), *synonyms, *_MORE_BIRD_NAMES.get(class_name, [])]
        synonyms += [re.sub("Gray|Grey", _other_grey, n) for n in (raw, name) if "Gr" in n]
        yield class_name, name, synonyms, above, "bird", hyponyms


def _other_grey(found):
    return {"Gray": "Grey", "Grey": "Gray"}[found[0]]


_PETS = {
    "american_bulldog": ([], ["bulldog"]),
    "american_pit_bull_terrier": (
        ["American Pit Bull", "Pit Bull Terrier", "Pit Bull", "Pitbull"],
        ["terrier"],
    ),
    "basset_hound": (["Basset"], ["scent hound", "hound"]),
    "beagle": ([], ["scent hound", "hound"]),
    "chihuahua": ([], ["toy dog"]),
    "english_cocker_spaniel": ([], ["cocker spaniel", "spaniel", "gun dog"]),
    "english_setter": ([], ["setter", "gun dog"]),
    "german_shorthaired": (
        ["German Shorthaired", "German Shorthair Pointer", "German Short-haired Pointer"],
        ["pointer", "gun dog"],
    ),
    "great_pyrenees": (["Pyrenean Mountain Dog"], ["mountain dog"]),
    "havanese": ([], ["toy dog"]),
    "japanese_chin": (["Japanese Spaniel"], ["toy dog"]),
    "keeshond": ([], ["spitz"]),
    "miniature_pinscher": (["Min Pin"], ["pinscher", "toy dog"]),
    "newfoundland": ([], ["mountain dog"]),
    "pomeranian": ([], ["spitz", "toy dog"]),
    "pug": ([], ["toy dog"]),
    "saint_bernard": (["St. Bernard", "St Bernard"], ["mountain dog"]),
    "samoyed": ([], ["spitz"]),
    "scottish_terrier": (["Scottie"], ["terrier"]),
    "shiba_inu": (["Shiba"], ["spitz"]),
    "staffordshire_bull_terrier": (["Staffie", "Staffy"], ["bull terrier", "terrier"]),
    "wheaten_terrier": (["Soft-coated Wheaten Terrier"], ["terrier"]),
    "yorkshire_terrier": (["Yorkie"], ["terrier", "toy dog"]),
    "Bengal": ([], ["spotted cat"]),
    "Birman": ([], ["long-haired cat", "longhair"]),
    "British_Shorthair": ([], ["short-haired cat", "shorthair"]),
    "Egyptian_Mau": (["Mau"], ["spotted cat"]),
    "Maine_Coon": ([], ["long-haired cat", "longhair"]),
    "Persian": ([], ["long-haired cat", "longhair"]),
    "Ragdoll": ([], ["long-haired cat", "longhair"]),
    "Sphynx": (["Sphinx"], ["hairless cat"]),
}
_CATS = (
    "Abyssinian Bengal Birman Bombay British_Shorthair Egyptian_Mau Maine_Coon Persian Ragdoll "
    "Russian_Blue Siamese Sphynx"
).split()


def pets():
    module = "tensorflow_datasets.datasets.oxford_iiit_pet.oxford_iiit_pet_dataset_builder"
    for class_name in importlib.import_module(module)._LABEL_CLASSES:
        name = class_name.replace("_", " ")
        name = name[0].upper() + re.sub(r" [a-z]", lambda m: m[0].upper(), name[1:])
        kind = "cat" if class_name in _CATS else "dog"
        synonyms, above = _PETS.get(class_name, ([], []))
        if class_name == "german_shorthaired":
            name = "German Shorthaired Pointer"
        synonyms = [*synonyms, f"{name} {kind}"]
        yield class_name, name, synonyms, above, kind, []


_FLOWER_NAMES = {
    "pink-yellow dahlia?": ["pink-yellow dahlia", "pink and yellow dahlia"],
    "colt's foot": ["coltsfoot"],
    "globe-flower": ["globeflower"],
    "barbeton daisy": ["barberton daisy", "gerbera", "gerbera daisy"],
    "hippeastrum": ["amaryllis"],
    "bromelia": ["bromeliad"],
    "californian poppy": ["california poppy"],
    "sword lily": ["gladiolus"],
    "moon orchid": ["moth orchid", "phalaenopsis"],
    "common dandelion": ["dandelion"],
    "wild pansy": ["heartsease"],
    "english marigold": ["pot marigold", "calendula"],
    "bird of paradise": ["strelitzia", "bird of paradise flower"],
    "snapdragon": ["antirrhinum"],
    "osteospermum": ["african daisy", "cape daisy"],
    "frangipani": ["plumeria"],
    "canna lily": ["canna"],
    "desert-rose": ["adenium"],
    "water lily": ["waterlily"],
    "passion flower": ["passionflower", "passiflora"],
    "bee balm": ["monarda"],
    "blanket flower": ["gaillardia"],
    "lenten rose": ["hellebore"],
    "peruvian lily": ["alstroemeria"],
    "balloon flower": ["platycodon"],
    "giant white arum lily": ["arum lily", "calla lily"],
    "pincushion flower": ["scabious", "scabiosa"],
    "grape hyacinth": ["muscari"],
    "corn poppy": ["common poppy", "field poppy", "red poppy"],
    "prince of wales feathers": ["celosia"],
    "stemless gentian": ["trumpet gentian"],
    "love in the mist": ["nigella"],
    "mexican aster": ["cosmos"],
    "alpine sea holly": ["sea holly"],
    "great masterwort": ["masterwort", "astrantia"],
    "thorn apple": ["datura"],
    "columbine": ["aquilegia"],
    "foxglove": ["digitalis"],
    "mexican petunia": ["ruellia"],
    "trumpet creeper": ["trumpet vine"],
    "black-eyed susan": ["rudbeckia"],
    "tree mallow": ["lavatera"],
    "monkshood": ["aconite"],
    "gaura": ["beeblossom"],
}
_FLOWER_KINDS = {
    "japanese anemone": ["anemone"],
    "windflower": ["anemone"],
    "king protea": ["protea"],
    "wild pansy": ["pansy", "viola"],
    "bishop of llandaff": ["dahlia"],
    "ruby-lipped cattleya": ["cattleya", "orchid"],
    "grape hyacinth": ["hyacinth"],
    "stemless gentian": ["gentian"],
    "spring crocus": ["crocus"],
    "pink primrose": ["evening primrose", "primrose"],
    "osteospermum": ["daisy"],
    "siam tulip": ["ginger"],
    "garden phlox": ["phlox"],
    "ball moss": ["bromeliad"],
    "great masterwort": ["herb"],
    "hard-leaved pocket orchid": ["slipper orchid", "orchid"],
    "english marigold": ["daisy family"],
    "mexican petunia": [],
    "desert-rose": [],
    "lenten rose": [],
}
_FLOWER_HEADS = "lily orchid dahlia iris poppy thistle daisy ginger mallow marigold".split()


def flowers():
    module = "tensorflow_datasets.datasets.oxford_flowers102.oxford_flowers102_dataset_builder"
    for class_name in importlib.import_module(module)._NAMES:
        name = class_name.rstrip("?")
        head = name.split()[-1]
        by_head = [head] if head in _FLOWER_HEADS and head != name else []
        above = _FLOWER_KINDS.get(class_name, by_head)
        synonyms = [f"{name} flower", *_FLOWER_NAMES.get(class_name, [])]
        yield class_name, name, synonyms, above, "flower", []


# Kind of dish (nearest first) -> classes.
_FOOD_KINDS = {
    ("pie", "dessert"): "apple_pie",
    ("cake", "dessert"): "carrot_cake cheesecake chocolate_cake red_velvet_cake cup_cakes "
    "strawberry_shortcake tiramisu",
    ("pastry", "dessert"): "baklava beignets cannoli churros donuts",
    ("pudding", "dessert"): "bread_pudding chocolate_mousse creme_brulee panna_cotta",
    ("cookie", "dessert"): "macarons",
    ("frozen dessert", "dessert"): "frozen_yogurt ice_cream",
    ("breakfast",): "pancakes waffles",
    ("breakfast", "bread"): "french_toast",
    ("egg dish", "breakfast"): "eggs_benedict huevos_rancheros omelette",
    ("egg dish", "appetizer"): "deviled_eggs",
    ("burrito", "mexican food"): "breakfast_burrito",
    ("mexican food",): "chicken_quesadilla nachos tacos",
    ("dip", "mexican food"): "guacamole",
    ("dip", "appetizer"): "hummus",
    ("salad",): "beet_salad caesar_salad caprese_salad greek_salad seaweed_salad",
    ("soup",): "clam_chowder french_onion_soup hot_and_sour_soup lobster_bisque miso_soup",
    ("noodle soup", "noodles", "soup"): "pho ramen",
    ("noodles",): "pad_thai",
    ("pasta", "italian food"): "gnocchi lasagna macaroni_and_cheese ravioli spaghetti_bolognese "
    "spaghetti_carbonara",
    ("rice dish",): "bibimbap fried_rice paella risotto",
    ("sandwich",): "club_sandwich croque_madame grilled_cheese_sandwich hamburger hot_dog "
    "lobster_roll_sandwich pulled_pork_sandwich",
    ("bread",): "garlic_bread",
    ("toast", "bread", "appetizer"): "bruschetta",
    ("fish", "seafood"): "fish_and_chips",
    ("salmon", "fish", "seafood"): "grilled_salmon",
    ("raw fish", "fish", "seafood"): "ceviche sashimi tuna_tartare",
    ("shellfish", "seafood"): "mussels oysters scallops",
    ("seafood",): "crab_cakes fried_calamari shrimp_and_grits",
    ("japanese food", "seafood"): "sushi takoyaki",
    ("snails", "appetizer"): "escargots",
    ("raw beef", "beef", "meat"): "beef_carpaccio beef_tartare",
    ("steak", "beef", "meat"): "filet_mignon",
    ("beef", "meat"): "prime_rib steak",
    ("ribs", "pork", "meat"): "baby_back_ribs",
    ("pork", "meat"): "pork_chop",
    ("chicken", "poultry", "meat"): "chicken_wings",
    ("curry", "chicken"): "chicken_curry",
    ("duck", "poultry", "meat"): "peking_duck",
    ("liver", "meat"): "foie_gras",
    ("dumpling", "asian food"): "dumplings gyoza",
    ("fried food", "appetizer"): "onion_rings samosa spring_rolls falafel",
    ("potatoes", "fried food"): "french_fries poutine",
    ("beans", "vegetables"): "edamame",
    ("cheese", "appetizer"): "cheese_plate",
    ("italian food",): "pizza",
}
_FOOD_NAMES = {
    "cup_cakes": ["cupcake"],
    "donuts": ["doughnut"],
    "creme_brulee": ["cr\u00e8me br\u00fbl\u00e9e"],
    "hamburger": ["burger", "beefburger"],
    "french_fries": ["fries", "chips"],
    "omelette": ["omelet"],
    "escargots": ["escargot"],
    "lobster_roll_sandwich": ["lobster roll"],
    "grilled_cheese_sandwich": ["grilled cheese"],
    "macaroni_and_cheese": ["mac and cheese"],
    "gyoza": ["potsticker", "japanese dumplings"],
    "fried_calamari": ["calamari"],
    "spaghetti_bolognese": ["spaghetti bolognaise"],
    "frozen_yogurt": ["frozen yoghurt"],
    "lasagna": ["lasagne"],
    "cheese_plate": ["cheese board", "cheese platter"],
    "deviled_eggs": ["devilled eggs"],
    "beef_tartare": ["steak tartare"],
    "peking_duck": ["beijing duck"],
    "baby_back_ribs": ["pork ribs"],
}


def food():
    import tensorflow_datasets as tfds

    kinds = {c: list(above) for above, names in _FOOD_KINDS.items() for c in names.split()}
    path = tfds.core.tfds_path("image_classification/food-101_classes.txt")
    for class_name in path.read_text().split():
        name = class_name.replace("_", " ")
        # Answers in the singular; plurals are forms of a name, singulars are not.
        last = name.split()[-1]
        single = [name[:-1]] if last.endswith("s") and not last.endswith(("ss", "us")) else []
        single = [] if class_name in ("hummus", "escargots") else single
        synonyms = [*single, *_FOOD_NAMES.get(class_name, [])]
        yield class_name, name, synonyms, kinds[class_name], "food", []


_MAKES = ("AM General", "Aston Martin", "Land Rover")
_BODIES = {
    r"(Crew|Extended|Regular|Quad|Club) Cab|SuperCab|Pickup": ["pickup truck", "pickup", "truck"],
    r"SUV": ["SUV", "sport utility vehicle"],
    r"Minivan": ["minivan", "van"],
    r"Van": ["van"],
    r"Wagon": ["station wagon", "wagon", "estate"],
    r"Sedan": ["sedan", "saloon"],
    r"Coupe": ["coupe", "sports car"],
    r"Convertible": ["convertible", "cabriolet"],
    r"Hatchback": ["hatchback"],
}


def cars():
    module = "tensorflow_datasets.image_classification.cars196"
    for class_name in importlib.import_module(module)._NAMES:
        name = class_name.replace("Conv. Convertible", "Convertible")
        whole, year = name.rsplit(" ", 1)
        make = next((m for m in _MAKES if name.startswith(m)), name.split()[0])
        model, bodies = whole[len(make) + 1 :], []
        for pattern, words in _BODIES.items():
            if re.search(rf"\b({pattern})$", model):
                model = re.sub(rf" ?\b({pattern})$", "", model)
                bodies = words
                break
        words = model.split()
        named = [f"{make} {' '.join(words[:n])}" for n in range(len(words), 0, -1)]
        alone = [model] if len(model) > 3 and re.search("[A-Za-z]{3}", model) else []
        above = [[whole], [*named, *alone], [make], bodies]
        synonyms = [f"{year} {whole}"] + [n.replace("/", "") for n in [name] if "/" in n]
        yield class_name, name, synonyms, above, "car", []


GROUPS = {
    "bird": ["bird", "animal", "avian"],
    "cat": ["cat", "domestic cat", "feline", "animal", "pet", "mammal"],
    "dog": ["dog", "domestic dog", "canine", "animal", "pet", "mammal"],
    "flower": ["flower", "plant", "flowering plant", "blossom", "bloom"],
    "food": ["food", "dish", "meal"],
    "car": ["car", "vehicle", "automobile", "motor vehicle", "motor car"],
}
SETS = {
    "caltech_birds2011": birds,
    "oxford_flowers102": flowers,
    "food101": food,
    "oxford_iiit_pet": pets,
    "cars196": cars,
}


def unique(names, taken=()):
    """Names in their order, each once, compared without case."""
    known, found = {t.lower() for t in taken}, []
    for name in names:
        if name.lower() not in known:
            known.add(name.lower())
            found.append(name)
    return found


def tree(data_set):
    """The label tree of a data set, leaves in the order of its classes."""
    leaves, groups = {}, {}
    for class_name, name, synonyms, above, group, hyponyms in SETS[data_set]():
        groups[group] = GROUPS[group]
        levels = [names if isinstance(names, list) else [names] for names in above]
        synonyms = unique(synonyms, [name])
        used = [name, *synonyms, *GROUPS[group]]
        ancestors = []
        for names in levels:
            names = unique(names, used)
            used += names
            ancestors += [names] if names else []
        leaf = {"name": name, "generic": group, "synonyms": synonyms, "ancestors": ancestors}
        leaves[f"{data_set}/{class_name}"] = leaf | ({"hyponyms": hyponyms} if hyponyms else {})
    return {"version": 1, "groups": groups, "leaves": leaves}


def text(found):
    """One leaf a line."""
    lines = [f"{json.dumps(key)}: {json.dumps(leaf)}" for key, leaf in found["leaves"].items()]
    leaves, groups = ",\n".join(lines), json.dumps(found["groups"])
    return f'{{"version": 1,\n"groups": {groups},\n"leaves": {{\n{leaves}\n}}}}\n'


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for data_set in SETS:
        (FOLDER / f"{data_set}.json").write_text(text(tree(data_set)))
