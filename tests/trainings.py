"""Settings of trainings that take seconds, for tests: nothing is learned in them."""

MATCH = """
name = "tiny"
simulated = 1
simulated_size = 200
window = 64
radius = 4
anchors = 8
width = 32
features = 16
depth = 1
steps = 4
batch = 2
validate_every = 2
validation = 4
warmup = 1
device = "cpu"
threads = 1
"""
# Of a folder of simulated scenes, `data`.
DETECT = """
data = "{data}"
format = "simulated"
classes = ["ship", "plane", "small-vehicle", "large-vehicle"]
train_split = "train"
low = [300.0]
high = [6500.0]
window = 64
width = 16
steps = 12
batch = 2
warmup = 2
validate_every = 6
gsd_m = 0.5
"""
# Of one simulated scene, `scene`.
CLASSIFY = """
ms = "{scene}/ms.tif"
pan = "{scene}/pan.tif"
labels = "{scene}/truth/labels.tif"
resolution = "pan"
block = 16
buffer = 2
tile = 16
steps = 4
batch = 4
warmup = 1
ema = 0
validate_every = 2
threads = 1
device = "cpu"
"""
