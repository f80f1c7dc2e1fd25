"""Every configuration key that MaskFormer adds to Detectron2, with its meaning, unit and range."""

from __future__ import annotations

from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config


def add_maskformer_config(cfg: CfgNode) -> None:
    """Add MaskFormer's keys and defaults to a Detectron2 config, in place.

    Args:
        cfg: what ``detectron2.config.get_cfg()`` gave.
    """
    add_deeplab_config(cfg)  # poly schedule, INPUT.CROP.SINGLE_CATEGORY_MAX_AREA
    _add_input_keys(cfg.INPUT)
    _add_loader_keys(cfg.DATALOADER)
    _add_solver_keys(cfg.SOLVER)
    _add_head_keys(cfg.MODEL.SEM_SEG_HEAD)
    # A user's own datasets: see own_datasets.py. Their paths are relative to the file that they stand in.
    cfg.DATASETS.OWN = CfgNode(new_allowed=True)
    cfg.MODEL.MASK_FORMER = _mask_former_keys()
    cfg.MODEL.SWIN = _swin_keys()
    cfg.MODEL.TIMM = _timm_keys()
    cfg.MODEL.EOMT = _eomt_keys()
    # The network, in training, evaluation and prediction, compiled by torch.compile: "none"; "default"; "max-autotune",
    # which takes longer to compile, for kernels that are tried out, and on CUDA for graphs of them. docs/predict.md.
    cfg.MODEL.COMPILE = "none"
    # In evaluation and prediction, what the network computes products in: "float32", "bfloat16", "float16", or "auto":
    # bfloat16 where the device has it, else float16. Weights and results are float32; training has SOLVER.AMP.
    cfg.MODEL.PRECISION = "float32"
    cfg.MODEL.MASK_ON = True  # Detectron2's own DatasetMapper, if somebody trains with it, shall read masks
    # An evaluation goes on after the last image of one that was interrupted, of the same weights, configuration, data
    # and code in the same OUTPUT_DIR; False: all images are measured.
    cfg.TEST.RESUME = True
    # A score of the evaluations during training, such as "sem_seg/mIoU" or "panoptic_seg/PQ" (with several datasets in
    # DATASETS.TEST: "DATASET/sem_seg/mIoU"): the checkpoint with the highest is kept as model_best.pth. "": none is.
    cfg.TEST.BEST_METRIC = ""
    cfg.LOG = CfgNode()
    # Where a training's metrics and pictures go besides metrics.json: "tensorboard", "wandb", "mlflow"; see
    # docs/train.md.
    cfg.LOG.WRITERS = ["tensorboard"]
    # At each evaluation in a training, so many pictures of the first dataset of DATASETS.TEST go there too, with truth
    # and prediction beside them; the same each time. 0: none.
    cfg.LOG.PICTURES = 4
    # Add the line of Tecorigin's tcap_dllogger for every iteration to the log; see docs/sdaa.md.
    cfg.LOG.TCAPPDLL_LINES = False


def _add_input_keys(node: CfgNode) -> None:
    # Which mapper turns an annotated image into a training example; see maskformer/data/mappers.
    node.DATASET_MAPPER_NAME = "mask_former_semantic"
    # SSD colour jitter (brightness, contrast, saturation, hue) during training.
    node.COLOR_AUG_SSD = False
    # Training crops are padded bottom/right to a multiple of this, in pixels; < 1: no padding.
    node.SIZE_DIVISIBILITY = -1
    # Mappers that end in _lsj: examples are squares of this many pixels,
    node.IMAGE_SIZE = 1024
    # cut from images scaled to fit the square times a random factor between these.
    node.MIN_SCALE = 0.1
    node.MAX_SCALE = 2.0
    # Of one image, at most so many examples are drawn until one has a target; the last is taken in any case.
    node.MAX_DRAWS = 1
    # Grey of the pixels that training examples are padded with, 0..255.
    node.PADDING_VALUE = 128
    # Evaluation and prediction: a side that would have n and a half pixels after resizing gets n + 1 ("up", as in
    # Detectron2), or the even one of n and n + 1 ("even", as in EoMT).
    node.ROUNDING_TEST = "up"


def _add_loader_keys(node: CfgNode) -> None:
    # What a training image does that cannot be used (truncated, of another size than its label, ...): "raise" stops the
    # training and names the file; "skip" names it in the log and takes another image in its place.
    node.ON_BAD_IMAGE = "raise"
    # "skip" stops too when more than so many different images cannot be used.
    node.MAX_BAD_IMAGES = 100


def _add_solver_keys(node: CfgNode) -> None:
    # "ADAMW" or "SGD".
    node.OPTIMIZER = "ADAMW"
    # Weight decay of embeddings (queries); normalisation layers have SOLVER.WEIGHT_DECAY_NORM.
    node.WEIGHT_DECAY_EMBED = 0.0
    # The backbone learns at BASE_LR times this,
    node.BACKBONE_MULTIPLIER = 0.1
    # and each of its blocks, from the last to the first, at this times the rate of the block after it, 0 < . <= 1; as
    # many of the last ones as the second key says keep their rate. Embeddings are of the first block; docs/train.md.
    node.LAYER_DECAY = 1.0
    node.LAYER_DECAY_SPARED = 0
    # LR_SCHEDULER_NAME "TwoStageWarmupPolyLR": iterations in which all but the backbone warms up, and after that the
    # backbone, from 0; WARMUP_ITERS and WARMUP_FACTOR are not read then.
    node.WARMUP_STAGES = (500, 1000)
    # With AMP.ENABLED, what products are computed in: "float16" (with loss scaling), "bfloat16", or "auto": bfloat16
    # where the device has it, else float16.
    node.AMP.PRECISION = "auto"
    # The IMS_PER_BATCH images of a step go through the model in this many parts, one after the other: the same step in
    # less memory. It must divide the images of a process.
    node.ACCUMULATION_STEPS = 1
    # A step whose loss, matching cost or gradient is NaN or infinite is skipped; after so many in a row the run stops.
    node.MAX_BAD_STEPS = 10
    # BASE_LR for another batch: times IMS_PER_BATCH / LR_REFERENCE_BATCH ("linear"), times its root ("sqrt", usual for
    # AdamW), or as it is ("none").
    node.LR_SCALING = "none"
    # The IMS_PER_BATCH that BASE_LR was chosen for.
    node.LR_REFERENCE_BATCH = 16
    # For how many seconds the last checkpoint is tried to be written again, if the disk refuses it.
    node.SAVE_RETRY_SECONDS = 600
    node.EMA = CfgNode()
    # Keep a moving average of the weights, and evaluate it beside them; see maskformer/engine/hooks/averaging.py.
    node.EMA.ENABLED = False
    # What the average keeps of itself at each step, 0 <= . < 1; less at the beginning.
    node.EMA.DECAY = 0.9999
    # How many of the checkpoints of every CHECKPOINT_PERIOD stay, the latest ones; 0: all.
    node.KEEP_LAST = 0
    # Compute so that two runs with the same SEED are equal bit for bit on one device; slower. Operations that have no
    # such form there are named in the log.
    node.DETERMINISTIC = False


def _add_head_keys(node: CfgNode) -> None:
    # C, the width of mask and pixel embeddings.
    node.MASK_DIM = 256
    # "BasePixelDecoder", "TransformerEncoderPixelDecoder" or "MSDeformAttnPixelDecoder".
    node.PIXEL_DECODER_NAME = "BasePixelDecoder"
    # Encoder layers: on the coarsest feature in TransformerEncoderPixelDecoder, on the features that the next key names
    # in MSDeformAttnPixelDecoder,
    node.TRANSFORMER_ENC_LAYERS = 0
    node.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    # which has 4 points a level and MASK_FORMER.NHEADS heads: files of the original may hold these, nothing reads them.
    node.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    node.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8


def _mask_former_keys() -> CfgNode:
    node = CfgNode()
    # Loss.
    node.DEEP_SUPERVISION = True  # a loss on every decoder layer, not only the last
    node.NO_OBJECT_WEIGHT = 0.1  # weight of the class "no object" in the cross-entropy
    node.CLASS_WEIGHT = 1.0  # of the cross-entropy, and of the class cost
    node.DICE_WEIGHT = 1.0  # of the dice loss and cost
    node.MASK_WEIGHT = 20.0  # of the focal loss and cost; of sampled points, the binary cross-entropy's
    # Where masks are compared: "dense", at every pixel; "points", at sampled ones; "auto", as the query decoder's
    # authors did: points with MultiScaleMaskedTransformerDecoder, else dense.
    node.MASK_LOSS = "auto"
    node.TRAIN_NUM_POINTS = 12544  # P, the sampled points of a mask
    node.OVERSAMPLE_RATIO = 3.0  # so many times P are drawn to choose uncertain ones from
    node.IMPORTANCE_SAMPLE_RATIO = 0.75  # the share of P that is chosen so, 0..1; the others are uniform
    # Transformer.
    # Which query decoder: "StandardTransformerDecoder" or "MultiScaleMaskedTransformerDecoder" (or another's). The
    # latter where it is not set and TRANSFORMER_IN_FEATURE is "multi_scale_pixel_decoder".
    node.TRANSFORMER_DECODER_NAME = "StandardTransformerDecoder"
    node.NHEADS = 8
    node.DROPOUT = 0.1  # probability, 0..1
    node.DIM_FEEDFORWARD = 2048
    node.ENC_LAYERS = 0  # encoder layers between input and decoder
    node.DEC_LAYERS = 6  # MultiScaleMaskedTransformerDecoder has one less: it counts its predictions
    node.PRE_NORM = False  # normalise before each block instead of after it
    node.HIDDEN_DIM = 256  # D
    node.NUM_OBJECT_QUERIES = 100  # Q: the most segments one image can have
    # What queries attend to: a backbone feature, or of the pixel decoder "transformer_encoder" (its encoded feature),
    # "multi_scale_pixel_decoder" (its three levels in turn) or "pixel_embedding".
    node.TRANSFORMER_IN_FEATURE = "res5"
    node.ENFORCE_INPUT_PROJ = False  # a 1x1 convolution before the transformer even where widths agree
    # The network input is padded to a multiple of this, in pixels; 0: only to the batch's largest image;
    # < 0: the backbone's own.
    node.SIZE_DIVISIBILITY = 32
    node.TEST = CfgNode()
    node.TEST.SEMANTIC_ON = True  # return "sem_seg"
    node.TEST.PANOPTIC_ON = False  # return "panoptic_seg"
    node.TEST.INSTANCE_ON = False  # return "instances"
    # "sem_seg" is the label of each pixel, (height,width) int32, instead of (K,height,width) scores, which take K times
    # the memory; averages over TEST.AUG or windows are taken of scores nevertheless.
    node.TEST.SEM_SEG_LABELS = False
    node.TEST.OBJECT_MASK_THRESHOLD = 0.0  # panoptic: the least class probability of a kept query, 0..1
    node.TEST.OVERLAP_THRESHOLD = 0.0  # panoptic: the least visible fraction of a kept segment, 0..1
    # Crop padding and resize masks to the original size before, not after, classes are decided; always so for
    # panoptic and instance output.
    node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False
    # Semantic results of large images: (height, width) in pixels of the resized image; every window of that size goes
    # through the network alone, and scores are averaged. (): the whole image at once.
    node.TEST.SLIDING_WINDOW = ()
    node.TEST.SLIDING_WINDOW_OVERLAP = 0.33  # the least fraction of a window that the next one shares, 0 <= . < 1
    return node


def _swin_keys() -> CfgNode:
    node = CfgNode()
    node.PRETRAIN_IMG_SIZE = 224  # side in pixels of the images that the position embedding of APE is for
    node.PATCH_SIZE = 4  # pixels along a patch's side
    node.EMBED_DIM = 96  # channels of the first stage; each later one has twice as many
    node.DEPTHS = [2, 2, 6, 2]  # blocks of each stage
    node.NUM_HEADS = [3, 6, 12, 24]  # attention heads of each stage
    node.WINDOW_SIZE = 7  # cells along a window's side
    node.MLP_RATIO = 4.0  # hidden width of a block's network over its input's
    node.QKV_BIAS = True  # a bias on queries, keys and values
    node.QK_SCALE = None  # factor on inner products; None: one over the root of a head's width
    node.DROP_RATE = 0.0  # dropout of patches, projections and networks, 0..1
    node.ATTN_DROP_RATE = 0.0  # dropout of attention weights, 0..1
    node.DROP_PATH_RATE = 0.3  # probability of leaving out the last block in training, 0..1; linear from 0 at the first
    node.APE = False  # add a learned absolute position embedding, resized to the image
    node.PATCH_NORM = True  # normalise embedded patches
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]  # which stages' outputs are features
    node.USE_CHECKPOINT = False  # in training, compute activations twice instead of keeping them: less memory
    return node


def _timm_keys() -> CfgNode:
    node = CfgNode()  # of MODEL.BACKBONE.NAME build_timm_backbone
    node.NAME = ""  # a model of timm, such as "convnext_tiny"; `timm.list_models()` gives all
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]  # which features, by stride: res2 is 1/4, res5 1/32
    # "": its norms are trained as they are; "FrozenBN": its batch norms keep what the weights bring, statistics and
    # parameters; "SyncBN": those take their statistics over all processes.
    node.NORM = ""
    node.DROP_PATH_RATE = 0.0  # probability of leaving out the last block in training, 0..1; linear from 0 at the first
    return node


def _eomt_keys() -> CfgNode:
    node = CfgNode()  # of META_ARCHITECTURE EoMT; queries, losses and results have the keys of MASK_FORMER
    # The plain vision transformer.
    node.IMAGE_SIZE = 640  # side in pixels of the square that its position table is for; other sizes resample it
    node.PATCH_SIZE = 16  # pixels along a patch's side
    node.EMBED_DIM = 384  # D
    node.DEPTH = 12  # blocks
    node.NUM_HEADS = 6  # attention heads of each block; divides EMBED_DIM
    node.NUM_REGISTERS = 4  # tokens that stand for no patch, besides the class token
    node.SWIGLU = False  # gated feed-forward networks: DINOv2's g
    node.ROTARY = False  # DINOv3's blocks: positions turn queries and keys, which have no bias; no position table
    # Queries.
    node.NUM_BLOCKS = 3  # how many of the last blocks they go through
    node.MASKED_ATTENTION = True  # in training they attend to patches within their own masks
    # Each of those blocks, the first first, gives that up between these iterations: as many of both as blocks, or [],
    # and it is never given up.
    node.ANNEALING_STARTS = []
    node.ANNEALING_ENDS = []
    # Released weights of DINOv3 are differences: the file or folder of the backbone that they are added to; "":
    # MODEL.WEIGHTS are whole.
    node.DELTA_BASE = ""
    return node


def default_config() -> CfgNode:
    """All keys at Detectron2's and our defaults."""
    cfg = get_cfg()
    add_maskformer_config(cfg)
    return cfg
