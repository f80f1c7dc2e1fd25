"""Run a file that `python -m maskformer.tools.export` wrote, without PyTorch.

    python run_onnx.py model.onnx photo.jpg drawn.png

What is found is printed and drawn.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, picture, out = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
about = json.loads(session.get_modelmeta().custom_metadata_map["maskformer"])
image = ImageOps.exif_transpose(Image.open(picture))
if image.mode.startswith("I"):  # grey of 16 bits, of which Pillow would make white
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
image = image.convert("RGB")

# Resize as the model was tested: the shorter side to one length, the longer to at most another; or into a fixed size.
need, size = about["input"], np.array(image.size[::-1])
if need["size"]:
    scale = min(need["size"] / size)
else:
    scale = min(need["min_size_test"] / min(size), need["max_size_test"] / max(size)) if need["min_size_test"] else 1
rounded = np.round(size * scale) if need["rounding_test"] == "even" else np.floor(size * scale + 0.5)
height, width = np.maximum(rounded, 1).astype(int).tolist()
canvas = Image.new("RGB", (need["size"] or [height, width])[::-1], tuple(need["padding_colour"]))
canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR))
names = [each["name"] for each in about["outputs"]]
results = session.run(names, {need["name"]: np.asarray(canvas).transpose(2, 0, 1)[None]})

# Of each task: a map of ids, 0 where there is nothing, and the class of each id from 1.
if about["task"] == "semantic":
    ids, class_of = results[0][0] + 1, np.arange(len(about["classes"]))
elif about["task"] == "panoptic":
    ids, class_of = results[0][0], results[1][0]
elif about["task"] == "instance":
    scores, class_of, masks = (result[0] for result in results)
    ids = np.zeros(masks.shape[1:], int)
    for row in np.flatnonzero(scores > about["thresholds"]["shown_instance"])[::-1]:  # the best lies on top
        ids[masks[row]] = row + 1
else:
    sys.exit("The file gives logits: export it for another task.")
ids = np.asarray(Image.fromarray(ids[:height, :width].astype(np.int32)).resize(image.size, Image.Resampling.NEAREST))
for row in np.unique(ids[ids > 0]) - 1:
    print(about["classes"][class_of[row]]["name"], f"{np.mean(ids == row + 1):.1%} of the picture")

colour_of = np.array([[0, 0, 0]] + [about["classes"][index]["colour"] for index in class_of])
drawn = np.where(ids[..., None] > 0, 0.4 * np.asarray(image) + 0.6 * colour_of[ids], image)
drawn[:-1][ids[:-1] != ids[1:]] = drawn[:, :-1][ids[:, :-1] != ids[:, 1:]] = 255  # outlines
Image.fromarray(drawn.astype(np.uint8)).save(out)
