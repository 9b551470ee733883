"""Class names and WordNet ids that no installed library ships, in index order. Data only."""

# Krizhevsky 2009, "Learning multiple layers of features from tiny images": the fine labels.
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
CIFAR100 = tuple(_CIFAR100.split())

# The hundred classes of ImageNet that Tian et al. 2020, "Contrastive Multiview Coding" (arXiv
# 1906.05849) chose: WordNet id -> index among ImageNet's thousand (its ids in sorted order).
IMAGENET100 = {
    "n01558993": 15, "n01692333": 45, "n01729322": 54, "n01735189": 57,
    "n01749939": 64, "n01773797": 74, "n01820546": 90, "n01855672": 99,
    "n01978455": 119, "n01980166": 120, "n01983481": 122, "n02009229": 131,
    "n02018207": 137, "n02085620": 151, "n02086240": 155, "n02086910": 157,
    "n02087046": 158, "n02089867": 166, "n02089973": 167, "n02090622": 169,
    "n02091831": 176, "n02093428": 180, "n02099849": 209, "n02100583": 211,
    "n02104029": 222, "n02105505": 228, "n02106550": 234, "n02107142": 236,
    "n02108089": 242, "n02109047": 246, "n02113799": 267, "n02113978": 268,
    "n02114855": 272, "n02116738": 275, "n02119022": 277, "n02123045": 281,
    "n02138441": 299, "n02172182": 305, "n02231487": 313, "n02259212": 317,
    "n02326432": 331, "n02396427": 342, "n02483362": 368, "n02488291": 374,
    "n02701002": 407, "n02788148": 421, "n02804414": 431, "n02859443": 449,
    "n02869837": 452, "n02877765": 455, "n02974003": 479, "n03017168": 494,
    "n03032252": 498, "n03062245": 503, "n03085013": 508, "n03259280": 544,
    "n03379051": 560, "n03424325": 570, "n03492542": 592, "n03494278": 593,
    "n03530642": 599, "n03584829": 606, "n03594734": 608, "n03637318": 619,
    "n03642806": 620, "n03764736": 653, "n03775546": 659, "n03777754": 662,
    "n03785016": 665, "n03787032": 667, "n03794056": 674, "n03837869": 682,
    "n03891251": 703, "n03903868": 708, "n03930630": 717, "n03947888": 724,
    "n04026417": 748, "n04067472": 758, "n04099969": 765, "n04111531": 766,
    "n04127249": 772, "n04136333": 775, "n04229816": 796, "n04238763": 798,
    "n04336792": 830, "n04418357": 854, "n04429376": 857, "n04435653": 858,
    "n04485082": 872, "n04493381": 876, "n04517823": 882, "n04589890": 904,
    "n04592741": 908, "n07714571": 936, "n07715103": 938, "n07753275": 953,
    "n07831146": 959, "n07836838": 960, "n13037406": 993, "n13040303": 994,
}
