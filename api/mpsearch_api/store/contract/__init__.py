"""What every job store must do, as tests: subclass `JobStoreContract` and provide two fixtures.

```python
class TestMyStore(JobStoreContract):
    @pytest.fixture
    def clock(self):
        return SetClock()

    @pytest.fixture
    def jobs(self, clock):  # empty, and running on that clock
        return MyStore(clock=clock)
```
"""

from mpsearch_api.store.contract.claiming import Claiming
from mpsearch_api.store.contract.ending import Ending
from mpsearch_api.store.contract.reading import Reading
from mpsearch_api.store.contract.running import Running
from mpsearch_api.store.contract.stand_ins import START, SetClock, a_request
from mpsearch_api.store.contract.submitting import Submitting

__all__ = ["START", "JobStoreContract", "SetClock", "a_request"]


class JobStoreContract(Submitting, Reading, Claiming, Running, Ending):
    """Everything a job store must do."""
