package llmrate

import "time"

// An Event tells Config.OnEvent what happened. It is one of the concrete types of this file; more may be added, so
// switch on those you know.
type Event interface{ event() }

// QueuedEvent is sent when a job finds no room on a model and waits for it.
type QueuedEvent struct {
	Model, JobType, JobID string
	MaxWait               time.Duration
}

// StartedEvent is sent when a job has its reservation on a model and starts.
type StartedEvent struct {
	Model, JobType, JobID string
	Waited                time.Duration // for this model
	Estimate              Usage
}

// EndedEvent is sent when an attempt has ended and its reservation is settled.
type EndedEvent struct {
	Model, JobType, JobID string
	Usage                 Usage // what was used, if known
	UsageKnown            bool  // false: the estimate stays charged
	Cost                  float64
	Ran                   time.Duration
	Err                   error // what the job's function returned
}

// EscalatedEvent is sent when a job gives up on a model and tries the next.
type EscalatedEvent struct {
	Model, NextModel, JobType, JobID string
	Delegated                        bool          // it ran and returned Delegate; else it found no room in time
	Waited                           time.Duration // for Model
}

// OverageEvent is sent when a job used more of a resource than it had reserved, if its model limits that resource: one
// event for each resource.
type OverageEvent struct {
	Model, JobType, JobID, Resource string // Resource: "requests", "tokens", "input_tokens", "output_tokens"
	Estimated, Actual, Excess       int64
}

// RefusedEvent is sent when a job ends because no model took it: none had room in time, its context ended while it waited,
// the limiter was closed, or every model delegated it. Err is what the caller gets.
type RefusedEvent struct {
	JobType, JobID string
	Waited         time.Duration // for all models
	Err            error
}

// RatiosEvent is sent when the job types' shares have followed the load.
type RatiosEvent struct {
	Ratios map[string]float64 // by job type
}

func (QueuedEvent) event()    {}
func (StartedEvent) event()   {}
func (EndedEvent) event()     {}
func (EscalatedEvent) event() {}
func (OverageEvent) event()   {}
func (RatiosEvent) event()    {}
func (RefusedEvent) event()   {}
