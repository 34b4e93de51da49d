"""The Ray executor: attempts and parts of them as tasks of a Ray cluster.

```text
dispatcher --- gateway (a Ray driver) --- cluster --- attempt (a Ray task on some node)
                     '--- mailbox (an actor) ---------'    '--- nursery --- keeper --- job
                                                           '--- shards (Ray tasks on any node)
```

The gateway is a process of its own, because Ray ends a driver whose cluster goes away, and because
the token of the cluster stays in it. On its node an attempt is run just as by the local executor,
under the same limits; the job's own process knows neither Ray nor the token, and hands parts of its
work to the attempt through a socket.
"""
