"""What lmms-eval finds through the entry-point group `lmms_eval.models`: the model `vift`.

    python -m lmms_eval --model vift --model_args pretrained=checkpoints/vift-micro --tasks vift_micro \
        --include_path eval/tasks --output_path results

Every start of lmms-eval calls this, whatever model it runs, so nothing heavy is imported here; `model` has the rest.
"""


def manifest():
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="vift",
        simple_class_path="vift_eval.lmms.model.VIFTSimple",
        chat_class_path="vift_eval.lmms.model.VIFTChat",
    )
