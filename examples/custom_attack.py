"""An attack of your own, scored like the others, on a run that is recorded here."""

import tempfile
from pathlib import Path

from instahide_fl import Config
from instahide_fl.attacks.base import Attack, Reconstruction, Recovered, ignore_progress
from instahide_fl.audit.recorded_run import open_recorded_run
from instahide_fl.audit.run_attacks import run_attack
from instahide_fl.engine.inline import run_inline
from instahide_fl.run_folder import RunFolder
from instahide_fl.transcript.threat_model import threat_model


class LoudestRow(Attack):
    """Recover an image from the most active unit of a fully-connected first layer."""

    name = "loudest_row"
    summary = "one encoding a client, from the first layer's gradient"
    cost, source = "nothing", "Phong et al., IEEE TIFS 2018"

    def reconstruct(self, view, rng, progress):
        """Divide a row of the weight's gradient by the bias's."""
        recovered = []
        for observation in view.observations:
            update = observation.update
            weight, bias = update["hidden.weight"], update["hidden.bias"]
            row = bias.abs().argmax()
            image = (weight[row] / bias[row]).view(1, *view.image_shape)
            recovered.append(
                Recovered(observation.client, observation.round, images=image)
            )
        return Reconstruction("encoding", tuple(recovered))


with tempfile.TemporaryDirectory() as temporary:
    settings = {"model.name": "mlp", "train.rounds": 1, "train.batch-size": 1}
    record = {"record.rounds": "1", "record.truth": True}
    # This attack expects a first layer that sees the encoding itself, with its signs.
    settings["model.sign-invariant"] = False
    folder = Path(temporary) / "run"
    config = Config().with_values({**settings, **record, "output.folder": str(folder)})
    run_inline(config, RunFolder.create(folder, config))
    result = run_attack(
        open_recorded_run(folder),
        LoudestRow(),
        threat_model("honest-server"),
        0,
        ignore_progress,
    )
print(f"encodings: SSIM {result.scores.encoding.attack.sign_ssim.mean:.2f}")
print(f"private images: SSIM {result.scores.private.attack.sign_ssim.mean:.2f}")
print(f"verdict: {result.verdict}")
