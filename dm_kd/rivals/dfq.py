"""DFQ: a generator against the student, held to the teacher's batch statistics (Choi et al. 2020,
arXiv 2005.04136). One update of the generator, then ten student steps on fresh noise.

The preset is Fast-Datafree's, which the published CIFAR tables quote; it adds DAFL's onehot and
balance terms to the paper's loss. Its program passes the teacher as the student, so that the
adversarial term is 0; here it is the student. See dafl.py for the generator's width and output and
for the temperature.
"""

from dm_kd.rivals.dafl import Method as Method

SMALL = {"dfq": {
    "adv_kl_weight": 1.0, "bn_weight": 1.0, "onehot_weight": 1.0, "balance_weight": 20.0,
    "latent_size": 256, "generator_width": 128, "generator_rate": 1e-3,
    "generator_output": "sigmoid", "synthesis_batch": 256, "student_steps": 10, "warmup_calls": 0,
    "pool_images": 0}}
