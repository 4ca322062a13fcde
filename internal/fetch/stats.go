package fetch

import (
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// counters count since the object was added.
type counters struct {
	requests, fetched, demand, ahead, hydrated atomic.Int64
}

// filled counts r, which s wrote.
func (c *counters) filled(s *stream, r ondemand.Range) {
	if s.hydrate {
		c.hydrated.Add(r.Len)
		return
	}
	demand := r.Intersect(s.demand).Len
	c.demand.Add(demand)
	c.ahead.Add(r.Len - demand)
}

// Stats of one object since it was added.
type Stats struct {
	Requests   int64   // made to the source
	Fetched    int64   // bytes that came from the source
	Demand     int64   // bytes made present because a Fill asked for them
	Ahead      int64   // bytes made present by read-ahead
	Hydrated   int64   // bytes made present by Hydrate
	Streams    int     // requests running
	Queued     int     // requests that wait for their turn
	Windows    []int64 // lengths of the windows of the readers followed
	Sequential bool    // the source gives its bytes from 0 on only
	Err        error   // why nothing is fetched any more, or nil
}

// Stats tells about an object; the zero value if it is not there.
func (f *Fetcher) Stats(id ondemand.ObjectID) Stats {
	o, err := f.object(id)
	if err != nil {
		return Stats{}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return Stats{
		Requests:   o.count.requests.Load(),
		Fetched:    o.count.fetched.Load(),
		Demand:     o.count.demand.Load(),
		Ahead:      o.count.ahead.Load(),
		Hydrated:   o.count.hydrated.Load(),
		Streams:    len(o.running),
		Queued:     len(o.queue),
		Windows:    o.heads.windows(),
		Sequential: o.ordered,
		Err:        o.poison,
	}
}
