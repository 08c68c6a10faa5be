from threading import *
