package llmrate

import (
	"math"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// claimAfter is how long, in nanoseconds, the head of a queue is refused for want of memory before the memory that
// comes free is kept for it. Without that, small jobs could starve a large one for ever.
const claimAfter = int64(60e9)

// memoryGate keeps the estimated memory of all running jobs within a budget. Its lock is taken last, under a model's
// lock; nothing else is locked while it is held.
type memoryGate struct {
	cfg    MemoryConfig
	sole   bool // the only job type has the whole budget
	detect func() memoryReading

	due atomic.Int64 // next detection, on the monotonic clock; math.MaxInt64 if never

	mu      sync.Mutex
	limit   int64 // as configured or detected
	hard    int64 // budget of an otherwise empty process: what no job may exceed
	budget  int64
	base    int64 // what the process needs without its jobs
	used    int64
	parts   []memoryPart // by job type
	blocked []bool       // by model: the head of a queue was refused here
	claim   *attempt     // a job that has waited so long that what comes free is kept for it
}

type memoryPart struct {
	ratio float64
	used  int64
}

// memoryReading is what the process may have, and what it has now, in bytes.
type memoryReading struct{ limit, used int64 }

func newMemoryGate(cfg MemoryConfig, types []*jobType, ratios []float64, models int) *memoryGate {
	g := &memoryGate{
		cfg: cfg, sole: len(types) == 1, detect: detectMemory,
		parts: make([]memoryPart, len(types)), blocked: make([]bool, models),
	}
	g.due.Store(math.MaxInt64)
	g.limit = cfg.Limit
	g.hard = fraction(cfg.Limit, cfg.Share)
	g.budget = g.hard
	for i := range g.parts {
		g.parts[i].ratio = ratios[i]
	}
	if cfg.Limit == 0 {
		for _, t := range types {
			if t.memory > 0 {
				g.due.Store(math.MinInt64) // detect before the first job
			}
		}
	}
	return g
}

// refresh detects the limit again if that is due, and returns the models whose waiters may fit now. Callers hold no
// lock: detection reads files.
func (g *memoryGate) refresh(now instant) (wake []int) {
	due := g.due.Load()
	if now.mono < due || !g.due.CompareAndSwap(due, satAdd(now.mono, int64(g.cfg.RefreshInterval))) {
		return nil
	}
	r := g.detect()
	g.mu.Lock()
	defer g.mu.Unlock()
	// The process's own use lies between what it has now, if no running job has allocated anything yet, and that less
	// what the running jobs hold, if all have. Keep the last value while the reading allows it.
	g.base = max(min(g.base, r.used), r.used-g.used, 0)
	before := g.budget
	g.limit = r.limit
	g.hard = fraction(r.limit, g.cfg.Share)
	g.budget = fraction(max(r.limit-g.base, 0), g.cfg.Share)
	if g.claim != nil && g.claim.memory > g.hard {
		g.claim = nil
		return g.takeBlocked()
	}
	if g.budget > before {
		return g.takeBlocked()
	}
	return nil
}

// fraction is share of n.
func fraction(n int64, share float64) int64 {
	if share == 1 {
		return n // a float64 is not exact above 2^53
	}
	return int64(float64(n) * share)
}

// take reserves an attempt's memory, or notes that its model has to be woken when some is freed. It returns the models
// that were held up for this attempt's sake.
func (g *memoryGate) take(a *attempt, p *pool) (wake []int, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.claim != nil && g.claim != a || !g.room(a.share.typ, p) {
		if !g.partFits(a.share.typ, p) {
			wake = g.dropClaim(a)
		}
		g.blocked[p.index] = true
		return wake, false
	}
	g.used += a.memory
	g.parts[a.share.typ.index].used += a.memory
	return g.dropClaim(a), true
}

// fits reports whether a job of type t on model p would get its memory now.
func (g *memoryGate) fits(t *jobType, p *pool) bool {
	if t.memory == 0 {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.claim == nil && g.room(t, p)
}

// room reports whether the budget and the type's part of it have room for one job. An empty process may always start a
// job that its limit allows, whatever the last reading of its own use was; so may a type that holds nothing.
func (g *memoryGate) room(t *jobType, p *pool) bool {
	n := t.memory
	return (n <= g.budget-g.used || g.used == 0 && n <= g.hard) && g.partFits(t, p)
}

func (g *memoryGate) partFits(t *jobType, p *pool) bool {
	n, held := t.memory, g.parts[t.index].used
	return held == 0 || float64(held)+float64(n) <= g.part(t.index, p, n)*(1+ratioTolerance)
}

// part is how many bytes jobs of type t may hold, seen from model p.
func (g *memoryGate) part(t int, p *pool, perJob int64) float64 {
	if g.sole {
		return p.bound(float64(g.budget), float64(perJob))
	}
	return p.bound(g.parts[t].ratio*float64(g.budget), float64(perJob))
}

// release gives back what a job held and returns the models whose waiters may fit now.
func (g *memoryGate) release(a *attempt) (wake []int) {
	if a.memory == 0 {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.used -= a.memory
	g.parts[a.share.typ.index].used -= a.memory
	return g.takeBlocked()
}

// starving makes a, the head of a queue that was refused here for a long time, the next to get memory, unless it is its
// own type that holds it up.
func (g *memoryGate) starving(a *attempt) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.claim == nil && a.memory <= g.hard && g.partFits(a.share.typ, a.pool) {
		g.claim = a
	}
}

// leave ends the claim of an attempt that does not wait for memory any more, and returns the models that were held up.
func (g *memoryGate) leave(a *attempt) (wake []int) {
	if a.memory == 0 {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.dropClaim(a)
}

func (g *memoryGate) dropClaim(a *attempt) (wake []int) {
	if g.claim == nil || g.claim != a {
		return nil
	}
	g.claim = nil
	return g.takeBlocked()
}

func (g *memoryGate) takeBlocked() (models []int) {
	for i, blocked := range g.blocked {
		if blocked {
			models = append(models, i)
			g.blocked[i] = false
		}
	}
	return models
}

// neverFits reports whether n bytes are more than the whole budget can ever be, and that budget.
func (g *memoryGate) neverFits(n int64) (hard int64, never bool) {
	if n == 0 {
		return 0, false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.hard, n > g.hard
}

func (g *memoryGate) setRatios(ratios []float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range g.parts {
		g.parts[i].ratio = ratios[i]
	}
}

// detectMemory finds the least of GOMEMLIMIT, the cgroup's limit (v1 or v2) and the machine's memory, and what the Go
// runtime holds of it without garbage and freed pages.
func detectMemory() memoryReading {
	limit := debug.SetMemoryLimit(-1) // math.MaxInt64 if there is none
	for _, source := range []func() (uint64, error){memlimit.FromCgroup, memlimit.FromSystem} {
		if n, err := source(); err == nil && n > 0 && n < uint64(limit) {
			limit = int64(n)
		}
	}
	samples := []metrics.Sample{
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/heap/live:bytes"},
	}
	metrics.Read(samples)
	var v [5]int64
	for i, s := range samples {
		if s.Value.Kind() == metrics.KindUint64 {
			v[i] = int64(s.Value.Uint64())
		}
	}
	garbage := max(v[3]-v[4], 0)
	return memoryReading{limit: limit, used: max(v[0]-v[1]-v[2]-garbage, 0)}
}
