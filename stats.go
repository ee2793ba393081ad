package llmrate

import (
	"math"
	"time"
)

// Stats is a snapshot of a limiter, consistent over all models at one instant.
type Stats[M ~string] struct {
	Time     time.Time
	Models   map[M]ModelStats
	JobTypes map[string]JobTypeStats
	Memory   MemoryStats
	Jobs     []JobInfo // running and waiting, in no order
}

// ModelStats is the state of one model. Windows that are not limited are zero.
type ModelStats struct {
	RequestsPerMinute, RequestsPerDay           WindowStats
	TokensPerMinute, TokensPerDay               WindowStats
	InputTokensPerMinute, OutputTokensPerMinute WindowStats
	Custom                                      []WindowStats // in the order of Limits.Custom
	Concurrency                                 ConcurrencyStats
	JobTypes                                    map[string]ShareStats
}

// WindowStats is one limit. Used is what this instance has charged in the open window, reservations included, or what
// its bucket lacks; it can exceed Limit by the excess of jobs that used more than estimated. Remaining is never
// negative. Limit is what a window, or the bucket, can hold; 0 means not limited. ResetsAt is when nothing will be
// charged any more if no job starts.
type WindowStats struct {
	Used, Limit, Remaining int64
	ResetsAt               time.Time
}

// ConcurrencyStats is how many jobs run on a model, how many may (0: not limited), and how many wait for it.
type ConcurrencyStats struct{ Active, Limit, Waiting int64 }

// ShareStats is one job type on one model.
type ShareStats struct {
	// Slots is how many jobs of the type's estimate its share allows in the window, or in flight, whichever binds; those
	// charged or running are included. math.MaxInt if nothing limits them.
	Slots int

	InFlight, Waiting int

	// Load is how much of its budget the type has used where that binds, at least 1 while it waits. Ratios follow it.
	Load float64
}

// JobTypeStats is one job type on all models.
type JobTypeStats struct {
	Ratio, InitialRatio float64
	Fixed               bool
	InFlight, Waiting   int
}

// MemoryStats is the memory gate, in bytes. Limit is what was configured or detected, Budget what running jobs may hold
// of it together, Used what they are estimated to hold.
type MemoryStats struct{ Limit, Budget, Used int64 }

// JobInfo is one running or waiting job.
type JobInfo struct {
	JobID, JobType, Model string
	Waiting               bool
	Since                 time.Time // when it started to run, or to wait for this model
	Estimate              Usage
}

// Stats returns a snapshot of everything. It holds the models' locks only to copy numbers and pointers, so that it does
// not stall admission however many jobs there are.
func (l *Limiter[M]) Stats() Stats[M] {
	c, err := l.ready()
	if err != nil {
		return Stats[M]{}
	}
	c.readers.Add(1)
	defer c.readers.Add(-1)
	st := Stats[M]{
		Models:   make(map[M]ModelStats, len(c.pools)),
		JobTypes: make(map[string]JobTypeStats, len(c.types)),
	}
	models := make([]ModelStats, len(c.pools))
	shares := make([][]ShareStats, len(c.pools))
	running, queued := make([][]*attemptBlock, len(c.pools)), make([][]*attemptBlock, len(c.pools))
	for i, p := range c.pools {
		models[i].Custom = make([]WindowStats, p.customs)
		shares[i] = make([]ShareStats, len(c.types))
		running[i], queued[i] = p.roomForJobs()
	}

	c.ratios.mu.Lock()
	for _, p := range c.pools {
		p.mu.Lock()
	}
	now := c.now()
	for i, p := range c.pools {
		p.snapshot(now, &models[i], shares[i])
		running[i], queued[i] = p.running.snapshot(running[i]), p.queued.snapshot(queued[i])
	}
	g := c.memory
	g.mu.Lock()
	st.Memory = MemoryStats{Limit: g.limit, Budget: g.budget, Used: g.used}
	g.mu.Unlock()
	for _, p := range c.pools {
		p.mu.Unlock()
	}
	ratios := c.ratios.current
	c.ratios.mu.Unlock()

	st.Time = time.Unix(0, now.wall)
	for i, p := range c.pools {
		models[i].JobTypes = make(map[string]ShareStats, len(c.types))
		for k, t := range c.types {
			models[i].JobTypes[t.name] = shares[i][k]
		}
		st.Models[M(p.name)] = models[i]
		for _, b := range running[i] {
			for _, a := range b.items {
				if a != nil {
					st.Jobs = append(st.Jobs, a.info(a.started, false))
				}
			}
		}
		for _, b := range queued[i] {
			for _, a := range b.items {
				if a != nil {
					st.Jobs = append(st.Jobs, a.info(a.queued, true))
				}
			}
		}
	}
	for k, t := range c.types {
		ts := JobTypeStats{Ratio: ratios[k], InitialRatio: c.ratios.initial[k], Fixed: t.fixed}
		for i := range shares {
			ts.InFlight += shares[i][k].InFlight
			ts.Waiting += shares[i][k].Waiting
		}
		st.JobTypes[t.name] = ts
	}
	return st
}

// roomForJobs makes room for the lists of jobs before the locks are taken for good, with some to spare.
func (p *pool) roomForJobs() (running, queued []*attemptBlock) {
	p.mu.Lock()
	r, q := len(p.running.blocks), len(p.queued.blocks)
	p.mu.Unlock()
	return make([]*attemptBlock, 0, r+4), make([]*attemptBlock, 0, q+4)
}

func (p *pool) snapshot(now instant, m *ModelStats, shares []ShareStats) {
	p.advance(now.wall)
	named := [customLimit]*WindowStats{
		requestsPerMinute: &m.RequestsPerMinute, requestsPerDay: &m.RequestsPerDay,
		tokensPerMinute: &m.TokensPerMinute, tokensPerDay: &m.TokensPerDay,
		inputTokensPerMinute: &m.InputTokensPerMinute, outputTokensPerMinute: &m.OutputTokensPerMinute,
	}
	for i := range p.dims {
		d := &p.dims[i]
		if d.kind == customLimit {
			m.Custom[d.custom] = d.stats()
		} else {
			*named[d.kind] = d.stats()
		}
	}
	m.Concurrency = ConcurrencyStats{Active: p.inFlight, Limit: p.maxConcurrent, Waiting: int64(p.waiting)}
	for i := range p.shares {
		s := &p.shares[i]
		slots, _ := p.slots(s)
		shares[i] = ShareStats{Slots: math.MaxInt, InFlight: int(s.inFlight), Waiting: s.queue.length, Load: p.load(s)}
		if slots < math.MaxInt64 {
			shares[i].Slots = int(slots)
		}
	}
}

func (a *attempt) info(since instant, waiting bool) JobInfo {
	return JobInfo{
		JobID: a.id(), JobType: a.share.typ.name, Model: a.pool.name,
		Waiting: waiting, Since: time.Unix(0, since.wall), Estimate: a.estimate,
	}
}
