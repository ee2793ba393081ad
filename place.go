package llmrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// core is a limiter without its type parameter: models are plain strings in here.
type core struct {
	pools   []*pool // in order of preference
	types   []*jobType
	names   map[string]*jobType
	memory  *memoryGate
	ratios  *ratios
	member  Member // nil without a backend
	logger  *slog.Logger
	onEvent func(context.Context, Event)

	background context.Context // of events that no job caused
	epoch      time.Time
	wallDue    atomic.Int64 // monotonic; when to read the wall clock again
	wallAhead  atomic.Int64 // of the monotonic clock
	jobPrefix  string
	jobs       atomic.Uint64
	readers    atomic.Int64 // calls of Stats under way
	left       atomic.Bool  // the fleet
}

// now reads the monotonic clock, and once in a while the wall clock too: reading both takes twice as long. A wall clock
// that is set is noticed wallFresh later.
func (c *core) now() instant {
	mono := int64(time.Since(c.epoch))
	if mono >= c.wallDue.Load() {
		t := time.Now()
		mono = int64(t.Sub(c.epoch))
		c.wallAhead.Store(t.UnixNano() - mono)
		c.wallDue.Store(mono + wallFresh)
	}
	return instant{wall: mono + c.wallAhead.Load(), mono: mono}
}

const wallFresh = int64(time.Millisecond)

// keepUp does what is due from time to time. Callers hold no lock.
func (c *core) keepUp(now instant) {
	if now.mono >= c.memory.due.Load() {
		for _, i := range c.memory.refresh(now) {
			c.look(c.pools[i])
		}
	}
	if now.mono >= c.ratios.due.Load() {
		c.adapt(now)
	}
}

// look lets in whoever fits now.
func (c *core) look(p *pool) {
	now := c.now()
	p.mu.Lock()
	p.drain(now)
	p.unlock()
}

// A job is one call of Run or Acquire on its way through the models.
type job struct {
	typ      *jobType
	id       string // as given, or as idOf has made it
	number   uint64
	models   []*pool // not tried yet
	estimate *Usage  // instead of the type's
	noWait   bool    // TryAcquire
	maxWait  time.Duration
	hasWait  bool // maxWait replaces the type's

	spare     *attempt   // memory for the first attempt
	shortages []Shortage // of the models that had no room
	causes    []error    // of the models that delegated
	waited    time.Duration
}

func (c *core) newJob(ctx context.Context, j *job, jobType string, opts []RunOption) error {
	if ctx == nil {
		return &FieldError{Field: "ctx", Problem: "must not be nil"}
	}
	j.typ, j.models = c.jobType(jobType), c.pools
	if j.typ == nil {
		return fmt.Errorf("%w %q; the job types are %s", ErrUnknownJobType, jobType, quoted(c.typeNames()))
	}
	for i := range opts {
		if err := c.apply(j, &opts[i]); err != nil {
			return err
		}
	}
	if j.id == "" {
		j.number = c.jobs.Add(1)
	}
	return nil
}

// idOf is the job's ID. One that was not given is put into words only when somebody asks: Acquire need not allocate it.
func (c *core) idOf(j *job) string {
	if j.id == "" {
		j.id = c.jobID(j.number)
	}
	return j.id
}

func (c *core) jobID(number uint64) string {
	buf := make([]byte, 0, 48)
	return string(strconv.AppendUint(append(buf, c.jobPrefix...), number, 10))
}

// jobType finds a type by its name: among a few, comparing is quicker than hashing.
func (c *core) jobType(name string) *jobType {
	if len(c.types) > 8 {
		return c.names[name]
	}
	for _, t := range c.types {
		if t.name == name {
			return t
		}
	}
	return nil
}

func (c *core) apply(j *job, o *RunOption) error {
	switch o.kind {
	case optionEstimate:
		if err := o.estimate.check("WithEstimate"); err != nil {
			return err
		}
		estimate := o.estimate
		if estimate.Requests == 0 {
			estimate.Requests = j.typ.estimate.Requests
		}
		j.estimate = &estimate
	case optionModels:
		if len(o.models) == 0 {
			return &FieldError{Field: "WithModels", Problem: "name at least one model"}
		}
		j.models = make([]*pool, 0, len(o.models))
		for i, name := range o.models {
			p := c.pool(name)
			if p == nil {
				return fmt.Errorf("%w %q; the models are %s", ErrUnknownModel, name, quoted(c.modelNames()))
			}
			if slices.Contains(j.models, p) {
				return &FieldError{Field: fmt.Sprintf("WithModels[%d]", i), Problem: fmt.Sprintf("%q is named twice; a job tries each model once", name)}
			}
			j.models = append(j.models, p)
		}
	case optionJobID:
		j.id = o.jobID
	case optionMaxWait:
		if o.maxWait < 0 {
			return &FieldError{Field: "WithMaxWait", Problem: fmt.Sprintf("must not be negative, is %s; 0 means do not wait", o.maxWait)}
		}
		j.maxWait, j.hasWait = o.maxWait, true
	}
	return nil
}

func (c *core) pool(model string) *pool {
	for _, p := range c.pools {
		if p.name == model {
			return p
		}
	}
	return nil
}

func (c *core) modelNames() []string {
	names := make([]string, len(c.pools))
	for i, p := range c.pools {
		names[i] = p.name
	}
	return names
}

func (c *core) typeNames() []string {
	names := make([]string, len(c.types))
	for i, t := range c.types {
		names[i] = t.name
	}
	return names
}

// maxWaitOn is how long the job waits for p if it queues there now.
func (j *job) maxWaitOn(p *pool, now instant) time.Duration {
	switch {
	case j.noWait:
		return 0
	case j.hasWait:
		return j.maxWait
	}
	return j.typ.waits[p.index].from(now)
}

// place finds the next model that has room for the job, waiting as long as it may on each, and reserves there.
//
// While a job waits, this frame, those of its callers and that of wait are on its stack, and when it wakes none of them
// is in the cache any more. What is rare is therefore in functions of its own, to keep these frames small.
func (c *core) place(ctx context.Context, j *job) (*attempt, error) {
	for len(j.models) > 0 {
		if ctx.Err() != nil {
			return nil, c.refused(ctx, j, context.Cause(ctx))
		}
		p := j.models[0]
		j.models = j.models[1:]
		a, queued, err := c.reserve(ctx, j, p)
		if queued {
			err = p.wait(ctx, j, a)
		}
		if c.member != nil && err == nil && a.state == attemptRunning {
			a, err = c.confirm(ctx, j, a)
		}
		j.waited += a.waited
		if err != nil {
			return nil, c.refused(ctx, j, err)
		}
		if a.state == attemptRunning {
			return a, nil
		}
		if len(j.models) > 0 && c.onEvent != nil {
			c.escalated(ctx, j, a)
		}
	}
	return nil, c.refused(ctx, j, nil)
}

func (c *core) escalated(ctx context.Context, j *job, a *attempt) {
	c.onEvent(ctx, EscalatedEvent{Model: a.pool.name, NextModel: j.models[0].name, JobType: j.typ.name, JobID: j.id, Waited: a.waited})
}

// refused ends a job that has found no place, because of err or, if that is nil, because no model is left.
func (c *core) refused(ctx context.Context, j *job, err error) error {
	switch {
	case err != nil:
		err = j.fail(err)
	case len(j.shortages) == 0:
		err = errors.Join(j.causes...)
	default:
		err = j.fail(c.capacityError(j, time.Time{}))
	}
	if c.onEvent != nil {
		c.onEvent(ctx, RefusedEvent{JobType: j.typ.name, JobID: j.id, Waited: j.waited, Err: err})
	}
	return err
}

// explain notes why an attempt has found no room.
func (p *pool) explain(j *job, a *attempt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	j.shortages = append(j.shortages, p.shortage(a, a.refusal))
}

// goOn sends a job that a model has delegated on to the next.
func (c *core) goOn(ctx context.Context, j *job, a *attempt, cause error) {
	j.causes = append(j.causes, fmt.Errorf("llmrate: %s: %w", a.pool.name, cause))
	if len(j.models) > 0 && c.onEvent != nil {
		c.onEvent(ctx, EscalatedEvent{Model: a.pool.name, NextModel: j.models[0].name, JobType: j.typ.name, JobID: j.id, Delegated: true, Waited: a.waited})
	}
}

// fail joins what went wrong before to the error that ends the job.
func (j *job) fail(err error) error {
	if len(j.causes) == 0 {
		return err
	}
	return errors.Join(append(j.causes, err)...)
}

func (c *core) capacityError(j *job, deadline time.Time) *CapacityError {
	e := &CapacityError{JobType: j.typ.name, JobID: c.idOf(j), Models: j.shortages, Deadline: deadline}
	for _, s := range j.shortages {
		if !s.RetryAt.IsZero() && (e.RetryAt.IsZero() || s.RetryAt.Before(e.RetryAt)) {
			e.RetryAt = s.RetryAt
		}
	}
	return e
}

// reserve tries one model. The attempt it returns runs, or is queued, or else the job's shortages say why not. An error
// ends the job.
func (c *core) reserve(ctx context.Context, j *job, p *pool) (a *attempt, queued bool, err error) {
	a = j.spare
	j.spare = nil
	if a == nil {
		a = new(attempt)
	}
	if err := p.prepare(j, a); err != nil {
		return a, false, err
	}
	now := c.now()
	c.keepUp(now)
	a.maxWait = j.maxWaitOn(p, now)

	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return a, false, ErrClosed
	}
	if short, never := p.tooLarge(a); never {
		p.mu.Unlock()
		j.shortages = append(j.shortages, short)
		return a, false, nil
	}
	switch r, ok := p.admit(now, a); {
	case ok:
	case a.maxWait == 0:
		j.shortages = append(j.shortages, p.shortage(a, r))
	default:
		p.enqueue(a, r)
		p.arm(now)
		queued = true
	}
	p.unlock()
	return a, queued, nil
}

// confirm gets the backend's consent to what the local gates have granted. Without it the reservation is taken back at
// once, and the job waits in its old place as long as it still may.
func (c *core) confirm(ctx context.Context, j *job, a *attempt) (*attempt, error) {
	p := a.pool
	for {
		result, err := c.ask(ctx, a)
		if err == nil && result.Granted {
			a.backendGrant = result.Grant
			return a, nil
		}
		p.mu.Lock()
		now := p.core.now()
		if err != nil || now.mono >= a.deadline || p.closed {
			p.settle(now, a, &amounts{})
			if err == nil && p.closed {
				err = ErrClosed
			}
			if err == nil {
				retryAt := satAdd(now.wall, int64(result.RetryAfter))
				j.shortages = append(j.shortages, p.shortage(a, refusal{ReasonBackend, noDim, retryAt}))
			}
			p.unlock()
			return a, err
		}
		a = p.requeue(now, a, result.RetryAfter)
		p.unlock()
		if err := p.wait(ctx, j, a); err != nil || a.state != attemptRunning {
			return a, err
		}
	}
}

func (c *core) ask(ctx context.Context, a *attempt) (AcquireResult, error) {
	answered := false
	defer func() {
		if !answered { // the backend panicked
			a.pool.giveBack(a)
		}
	}()
	result, err := c.member.Acquire(ctx, AcquireParams{Model: a.pool.name, Need: a.need.exported()})
	answered = true
	return result, err
}

// prepare makes a an attempt of the job on this model.
func (p *pool) prepare(j *job, a *attempt) error {
	s := &p.shares[j.typ.index]
	a.pool, a.share, a.jobID, a.number, a.memory = p, s, j.id, j.number, j.typ.memory
	if j.estimate == nil {
		a.estimate, a.need = j.typ.estimate, s.need
		return nil
	}
	a.estimate = *j.estimate
	return p.count(a.estimate, &a.need)
}

// count sets n to what a usage counts as on this model.
func (p *pool) count(u Usage, n *amounts) error {
	tokens := u.TotalTokens()
	if p.countTokens != nil {
		tokens = p.countTokens(u)
		if problem := amountProblem(tokens); problem != "" {
			return &FieldError{Field: fmt.Sprintf("CountTokens of model %q", p.name), Problem: problem}
		}
	}
	n[0], n[1], n[2], n[3] = u.Requests, tokens, u.InputTokens, u.OutputTokens
	return nil
}

func (n *amounts) exported() Amounts {
	return Amounts{Requests: n[0], Tokens: n[1], InputTokens: n[2], OutputTokens: n[3]}
}

// tooLarge reports whether an attempt could not even run alone.
func (p *pool) tooLarge(a *attempt) (Shortage, bool) {
	if hard, never := p.core.memory.neverFits(a.memory); never {
		return Shortage{Model: p.name, Reason: ReasonTooLarge, Resource: "memory", Needed: a.memory, Limit: hard}, true
	}
	i := p.neverFits(&a.need)
	if i < 0 {
		return Shortage{}, false
	}
	d := &p.dims[i]
	return Shortage{
		Model: p.name, Reason: ReasonTooLarge, Resource: string(resources[d.resource]), Per: time.Duration(d.per),
		Needed: a.need[d.resource], Limit: d.max,
	}, true
}

// outlook is what a job whose context has a deadline can expect of the model it queues for.
type outlook int

const (
	outlookOpen   outlook = iota // there may be room in time, here or on a later model after the longest wait here
	outlookNext                  // not here, and the wait would outlast the deadline, but on a later model
	outlookFutile                // no model can have room before the deadline
)

// outlook looks at p and the models after it. One can have room before the deadline if time alone makes room by then, or
// if something runs there that could end earlier or use less than it reserved.
func (c *core) outlook(j *job, p *pool, deadline time.Time) outlook {
	now := c.now()
	end := satAdd(now.mono, int64(time.Until(deadline)))
	if p.hopefulBefore(now, j, end) {
		return outlookOpen
	}
	for _, later := range j.models {
		if later.hopefulBefore(now, j, end) {
			if satAdd(now.mono, int64(j.maxWaitOn(p, now))) < end {
				return outlookOpen
			}
			return outlookNext
		}
	}
	return outlookFutile
}

func (p *pool) hopefulBefore(now instant, j *job, end int64) bool {
	var a attempt
	if p.prepare(j, &a) != nil {
		return true // reserve will say what is wrong
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, never := p.tooLarge(&a); never {
		return false
	}
	if p.inFlight > 0 {
		return true
	}
	p.advance(now.wall)
	r, ok := p.fit(a.share, &a.need)
	return ok || now.after(r.retryAt) < end || r.reason == ReasonShare && p.core.ratios.adaptive
}

// wait blocks until a queued attempt runs, or has waited long enough: then the job's shortages say why. An error ends the
// job, and then nothing is held.
func (p *pool) wait(ctx context.Context, j *job, a *attempt) error {
	if ctx.Done() != nil || p.core.onEvent != nil {
		if err := p.beforeWait(ctx, j, a); err != nil {
			return err
		}
	}
	if a.ownTimer {
		p.waitOwn(ctx, a)
	} else {
		select {
		case <-a.ready:
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil { // also if it was granted just now: no job starts for a caller who has gone
		p.giveBack(a)
		return context.Cause(ctx)
	}
	switch a.state { // whoever closed a.ready is done with the attempt: its state needs no lock
	case attemptRunning:
		return nil
	case attemptRefused:
		return ErrClosed
	}
	p.explain(j, a)
	return nil
}

// beforeWait calls the user's functions, which may panic, and gives up if there is no hope.
func (p *pool) beforeWait(ctx context.Context, j *job, a *attempt) error {
	left := false
	defer func() {
		if !left { // the user's CountTokens or OnEvent panicked
			p.giveBack(a)
		}
	}()
	c := p.core
	if deadline, has := ctx.Deadline(); has {
		if o := c.outlook(j, p, deadline); o != outlookOpen && p.giveUp(a) {
			left = true
			if o == outlookNext {
				return nil // wait finds it turned away
			}
			p.explain(j, a)
			return c.capacityError(j, deadline)
		}
	}
	if c.onEvent != nil {
		c.onEvent(ctx, QueuedEvent{Model: p.name, JobType: a.share.typ.name, JobID: a.jobID, MaxWait: a.maxWait})
	}
	left = true
	return nil
}

// waitOwn blocks like wait for an attempt that waits less long than one before it in the queue.
func (p *pool) waitOwn(ctx context.Context, a *attempt) {
	t := time.NewTimer(time.Duration(a.deadline - p.core.now().mono))
	defer t.Stop()
	select {
	case <-a.ready:
	case <-ctx.Done():
	case <-t.C:
		p.giveUp(a)
		<-a.ready // closed by giveUp or whoever came first
	}
}

// giveUp ends the wait of an attempt and reports whether it still waited.
func (p *pool) giveUp(a *attempt) bool {
	p.mu.Lock()
	defer p.unlock()
	if a.state != attemptQueued {
		return false
	}
	now := p.core.now()
	p.turnAway(now, a, attemptExpired)
	p.drain(now)
	return true
}

// giveBack ends the wait of an attempt, or undoes its reservation if it was granted in the meantime.
func (p *pool) giveBack(a *attempt) {
	if p.giveUp(a) {
		return
	}
	p.mu.Lock()
	defer p.unlock()
	if a.state == attemptRunning {
		p.settle(p.core.now(), a, &amounts{})
	}
}

// settle ends an attempt: it is charged used if that is known, or keeps its estimate. The second time is ErrSettled.
//
// It returns the usage as charged.
func (c *core) settle(ctx context.Context, a *attempt, used Usage, known bool, cause error) (Usage, error) {
	p := a.pool
	var counted amounts
	charge := (*amounts)(nil)
	if known {
		if err := used.check("Usage"); err != nil {
			return used, err
		}
		if used.Requests == 0 && !used.isZero() {
			used.Requests = a.estimate.Requests
		}
		if err := p.count(used, &counted); err != nil {
			return used, err
		}
		charge = &counted
	}
	now := c.now()
	p.mu.Lock()
	if a.state != attemptRunning {
		p.mu.Unlock()
		return used, ErrSettled
	}
	a.ran = time.Duration(now.mono - a.started.mono)
	if c.member != nil || c.onEvent != nil {
		p.ending++
		defer p.ended()
	}
	p.settle(now, a, charge)
	p.unlock()

	if c.member != nil {
		c.member.Settle(SettleParams{Model: p.name, Grant: a.backendGrant, Need: a.need.exported(), Used: counted.exported(), Known: known})
	}
	if c.ratios.settled() || now.mono >= c.ratios.due.Load() {
		c.adapt(now)
	}
	if c.onEvent != nil {
		c.ended(ctx, a, used, known, &counted, cause)
	}
	return used, nil
}

func (c *core) started(ctx context.Context, a *attempt) {
	if c.onEvent != nil {
		c.onEvent(ctx, StartedEvent{Model: a.pool.name, JobType: a.share.typ.name, JobID: a.jobID, Waited: a.waited, Estimate: a.estimate})
	}
}

func (c *core) ended(ctx context.Context, a *attempt, used Usage, known bool, counted *amounts, cause error) {
	p, typ := a.pool, a.share.typ.name
	for r, actual := range counted {
		if estimated := a.need[r]; known && estimated > 0 && actual > estimated && p.limits(r) {
			c.onEvent(ctx, OverageEvent{
				Model: p.name, JobType: typ, JobID: a.jobID, Resource: string(resources[r]),
				Estimated: estimated, Actual: actual, Excess: actual - estimated,
			})
		}
	}
	c.onEvent(ctx, EndedEvent{
		Model: p.name, JobType: typ, JobID: a.jobID, Usage: used, UsageKnown: known, Cost: p.pricing.Cost(used),
		Ran: a.ran, Err: cause,
	})
}

// available reports whether a job of the type would run here now.
func (p *pool) available(now instant, t *jobType) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.shares[t.index]
	p.advance(now.wall)
	_, fits := p.fit(s, &s.need)
	return fits && !p.closed && !p.claimed(&s.need) && s.queue.length == 0 && now.mono >= p.holdTill && p.core.memory.fits(t, p)
}

// leave takes the instance out of the fleet, once; after a failure it may be tried again.
func (c *core) leave(ctx context.Context) error {
	if !c.left.CompareAndSwap(false, true) {
		return nil
	}
	if c.member == nil {
		return nil
	}
	err := c.member.Leave(ctx)
	c.left.Store(err == nil)
	return err
}

// limits reports whether any of the model's dimensions counts the resource.
func (p *pool) limits(resource int) bool {
	for i := range p.dims {
		if p.dims[i].resource == resource {
			return true
		}
	}
	return false
}

// spareAttempts are those of jobs that have ended, for Run to use again.
var spareAttempts = sync.Pool{New: func() any { return new(attempt) }}

// spare keeps an attempt for another job. Only one that has ended, that never waited, and that nobody can see any more:
// Stats reads attempts after it has given up the locks, so as long as any call of it is under way, none is used again.
func (c *core) spare(a *attempt) {
	if a.ready == nil && c.readers.Load() == 0 {
		a.state, a.jobID, a.backendGrant = attemptNew, "", nil
		spareAttempts.Put(a)
	}
}
