"""ZSKT: a generator of images on which the student differs from the teacher (Micaelli & Storkey
2019, arXiv 1905.09768). One update of the generator, then five student steps on fresh noise.

The preset is Fast-Datafree's, which the published CIFAR tables quote. It has the KL term alone: the
paper's attention term, which matches inner maps of teacher and student, is not in that program nor
here. The program passes the teacher as the student, so that the term is 0; here it is the student.
See dafl.py for the generator's width and output and for the temperature.
"""

from dm_kd.rivals.dafl import Method as Method

SMALL = {"zskt": {
    "adv_kl_weight": 1.0, "latent_size": 256, "generator_width": 128, "generator_rate": 1e-3,
    "generator_output": "sigmoid", "synthesis_batch": 256, "student_steps": 5, "warmup_calls": 0,
    "pool_images": 0}}
