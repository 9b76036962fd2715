"""`tanhui torture`: kill -9 whatever the stack is made of while clients write, then count.

Clients send activities, batches, partner rows, redemptions, cancellations and scans, and repeat
them under their keys until they are answered; some give up instead. Meanwhile the API, its
workers, the Celery worker, beat, Redis and MongoDB die at random and the supervisor starts them
again. At the end everything acknowledged is there exactly once, nothing else is there twice, the
book holds, and stock and vouchers are conserved.
"""
