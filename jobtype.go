package llmrate

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// jobType is a class of jobs as configured; it never changes. Its ratio, which does, lives in ratios and in each
// model's share.
type jobType struct {
	name     string
	index    int
	estimate Usage  // as shown to the job's function
	total    int64  // EstimatedTokens
	unsplit  bool   // total stands for input and for output as well
	memory   int64  // bytes of one job
	fixed    bool   // the ratio does not follow the load
	waits    []wait // by model
}

// wait is how long a job waits for a model.
type wait struct {
	toNextMinute bool // and five seconds more
	d            time.Duration
}

func (w wait) from(now instant) time.Duration {
	if !w.toNextMinute {
		return w.d
	}
	minute := int64(time.Minute)
	return time.Duration(floorTo(now.wall, minute)+minute-now.wall) + defaultWaitAfterMinute
}

// initialRatios gives each type without a ratio an equal part of what the others leave.
func initialRatios(configured []float64) []float64 {
	left, unset := 1.0, 0
	for _, r := range configured {
		left -= r
		if r == 0 {
			unset++
		}
	}
	ratios := make([]float64, len(configured))
	for i, r := range configured {
		ratios[i] = r
		if r == 0 {
			ratios[i] = left / float64(unset)
		}
	}
	return ratios
}

// rebalance is one cycle of adaptation. Each flexible type below the low load gives what it does not need to be at the
// low load, but keeps at least minRatio; those above the high load share that equally. No ratio changes by more than
// maxChange, and the sum stays what it was. It reports whether anything changed.
func rebalance(ratios, loads []float64, types []*jobType, cfg RatioConfig) (next []float64, changed bool) {
	gives := func(i int) float64 {
		if types[i].fixed || loads[i] >= cfg.LowLoad {
			return 0
		}
		keep := max(cfg.MinRatio, ratios[i]*loads[i]/cfg.LowLoad)
		return max(0, min(cfg.MaxChange, ratios[i]-keep))
	}
	receives := func(i int) bool { return !types[i].fixed && loads[i] > cfg.HighLoad }

	given, receivers := 0.0, 0
	for i := range types {
		given += gives(i)
		if receives(i) {
			receivers++
		}
	}
	if given < ratioTolerance || receivers == 0 {
		return ratios, false
	}
	taken := min(given, cfg.MaxChange*float64(receivers))
	next = make([]float64, len(ratios))
	for i := range types {
		next[i] = ratios[i] - gives(i)*taken/given
		if receives(i) {
			next[i] = ratios[i] + taken/float64(receivers)
		}
	}
	return next, true
}

// ratios adapts the job types' shares to their load.
//
// Its lock is taken before any model's, never while one is held. Every model and the memory gate hold a copy of the
// ratios under their own locks, so that admission does not touch this.
type ratios struct {
	cfg      RatioConfig
	adaptive bool // two or more types are flexible: there is something to adapt

	due  atomic.Int64 // next cycle, on the monotonic clock; math.MaxInt64 if never
	left atomic.Int64 // settlements to the next cycle

	mu      sync.Mutex
	initial []float64
	current []float64
	loads   []float64 // of a cycle under way
}

func newRatios(cfg RatioConfig, types []*jobType, initial []float64, now instant) *ratios {
	flexible := 0
	for _, t := range types {
		if !t.fixed {
			flexible++
		}
	}
	r := &ratios{cfg: cfg, adaptive: flexible > 1, initial: initial, current: initial, loads: make([]float64, len(types))}
	r.due.Store(math.MaxInt64)
	r.left.Store(int64(cfg.Settlements))
	if r.adaptive {
		r.due.Store(satAdd(now.mono, int64(cfg.Interval)))
	}
	return r
}

// settled counts a settlement and reports whether it is the one that begins a cycle.
func (r *ratios) settled() bool {
	if !r.adaptive || r.left.Add(-1) != 0 {
		return false
	}
	r.left.Add(int64(r.cfg.Settlements))
	return true
}

// adapt runs a cycle of adaptation over all models. Callers hold no lock.
func (c *core) adapt(now instant) {
	r := c.ratios
	if !r.mu.TryLock() {
		return // somebody else is at it
	}
	r.due.Store(satAdd(now.mono, int64(r.cfg.Interval)))
	loads := r.loads
	clear(loads)
	for _, p := range c.pools {
		p.mu.Lock()
		p.advance(now.wall)
		for i := range p.shares {
			loads[i] = max(loads[i], p.load(&p.shares[i]))
		}
		p.mu.Unlock()
	}
	next, changed := rebalance(r.current, loads, c.types, r.cfg)
	if changed {
		r.current = next
		c.memory.setRatios(next)
		for _, p := range c.pools {
			p.mu.Lock()
			p.setRatios(now, next)
			p.unlock()
		}
	}
	r.mu.Unlock()
	if changed && c.onEvent != nil {
		changes := make(map[string]float64, len(next))
		for i, t := range c.types {
			changes[t.name] = next[i]
		}
		c.onEvent(c.background, RatiosEvent{Ratios: changes})
	}
}
