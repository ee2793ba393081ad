package llmrate

import "time"

// An Event tells Config.OnEvent what happened. It is one of the concrete types of this file; more may be added, so
// switch on those you know.
type Event interface{ event() }

// QueuedEvent: a job found no room on a model and waits for it.
type QueuedEvent struct {
	Model, JobType, JobID string
	MaxWait               time.Duration
}

// StartedEvent: a job has its reservation on a model and starts.
type StartedEvent struct {
	Model, JobType, JobID string
	Waited                time.Duration // for this model
	Estimate              Usage
}

// EndedEvent: an attempt has ended and its reservation is settled.
type EndedEvent struct {
	Model, JobType, JobID string
	Usage                 Usage // what was used, if known
	UsageKnown            bool  // false: the estimate stays charged
	Cost                  float64
	Ran                   time.Duration
	Err                   error // what the job's function returned
}

// EscalatedEvent: a job gives up on a model and tries the next.
type EscalatedEvent struct {
	Model, NextModel, JobType, JobID string
	Delegated                        bool          // it ran and returned Delegate; else it found no room in time
	Waited                           time.Duration // for Model
}

// OverageEvent: a job used more of a resource than it had reserved, in a resource that its model limits. One event for
// each resource.
type OverageEvent struct {
	Model, JobType, JobID, Resource string // Resource: "requests", "tokens", "input_tokens", "output_tokens"
	Estimated, Actual, Excess       int64
}

// RatiosEvent: the job types' shares have followed the load.
type RatiosEvent struct {
	Ratios map[string]float64 // by job type
}

func (QueuedEvent) event()    {}
func (StartedEvent) event()   {}
func (EndedEvent) event()     {}
func (EscalatedEvent) event() {}
func (OverageEvent) event()   {}
func (RatiosEvent) event()    {}
