import os,time
os.environ["TF_CPP_MIN_LOG_LEVEL"]="3"
import tensorflow as tf, pathlib, tempfile, sys, contextlib
from tests import harness
from tests.test_pipeline import *
from maskx_tf.system import progress
d=pathlib.Path(tempfile.mkdtemp())
rec=make_records(d,[harness.annotation(1, [3, 4, 20, 10])])
t=time.process_time()
for tr in (True,False,True): make_dataset(rec, CONFIG, PETS, (1,), training=tr, seed=0); print(tr, round(time.process_time()-t,2)); t=time.process_time()
