package llmrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Errors to test for with errors.Is. Those that carry numbers are returned inside a *CapacityError or a *FieldError;
// get at these with errors.AsType or errors.As.
var (
	// ErrNoCapacity: every model was full for as long as the job was willing to wait. See CapacityError.
	ErrNoCapacity = errors.New("llmrate: all models exhausted: no capacity available within max wait")

	// ErrTooLarge: the job's estimate is above a limit of every model, or above the memory budget. It can never run;
	// lower the estimate, split the job or raise the limit.
	ErrTooLarge = errors.New("llmrate: job is too large for every model")

	// ErrClosed: the limiter was closed before the job could start.
	ErrClosed = errors.New("llmrate: limiter is closed")

	// ErrUnknownJobType: the job type is not in Config.JobTypes.
	ErrUnknownJobType = errors.New("llmrate: unknown job type")

	// ErrUnknownModel: WithModels named a model that is not in Config.Models.
	ErrUnknownModel = errors.New("llmrate: unknown model")

	// ErrUsageUnknown is for a job's function to return when its call has succeeded but did not say what it used, as a
	// stream that was cut off: the estimate stays charged and Run returns nil. A usage beside it is ignored. Wrapped or
	// joined with another error it is an error like any other.
	ErrUsageUnknown = errors.New("llmrate: usage unknown")

	// ErrSettled: the reservation was settled or released before. Nothing was changed.
	ErrSettled = errors.New("llmrate: reservation is already settled")
)

// FieldError is a fault in a configuration or an argument. New and Validate return one for each fault, joined:
// errors.AsType finds the first; the error's Unwrap() []error method has them all.
type FieldError struct {
	Field   string // path of the field or name of the argument, such as Models[1].Limits.TokensPerMinute
	Problem string // what is wrong and what is accepted
}

func (e *FieldError) Error() string { return "llmrate: " + e.Field + ": " + e.Problem }

// Reason says which gate refused a job.
type Reason string

// The gates of a model, in the order in which a job passes them.
const (
	ReasonQueue    Reason = "queue"     // earlier jobs of the same type wait for this model
	ReasonShare    Reason = "share"     // the job type's share of a limit is used up
	ReasonLimit    Reason = "limit"     // the model's limit is used up
	ReasonMemory   Reason = "memory"    // the memory budget, or the type's part of it, is used up
	ReasonBackend  Reason = "backend"   // the fleet has no capacity left
	ReasonTooLarge Reason = "too large" // the estimate is above a limit: the job can never run here
)

// Shortage is why one model did not take a job.
type Shortage struct {
	Model    string
	Reason   Reason
	Resource string        // what was short: "requests", "tokens", ..., "concurrency", "memory"; "" behind a queue
	Per      time.Duration // the window of the limit that was short; 0 if it has none
	Needed   int64         // what the job would have reserved of it
	Free     int64         // what the job could have had of it when it was last looked at
	Limit    int64         // the limit or what its bucket holds, or the type's share of that
	Waited   time.Duration // how long the job waited for this model
	RetryAt  time.Time     // when time alone makes room; zero if a job must end first, or if never
}

func (s Shortage) String() string {
	var b strings.Builder
	b.WriteString(s.Model)
	b.WriteString(": ")
	what := s.Resource
	if s.Per > 0 {
		what += " per " + shortDuration(s.Per)
	}
	amount := func(n int64) string {
		if s.Resource == "memory" {
			if n >= 1<<20 {
				return strconv.FormatFloat(float64(n)/(1<<20), 'f', 1, 64) + " MiB"
			}
			return strconv.FormatInt(n, 10) + " bytes"
		}
		return strconv.FormatInt(n, 10)
	}
	switch s.Reason {
	case ReasonQueue:
		b.WriteString("earlier jobs of the type are waiting")
	case ReasonBackend:
		b.WriteString("the fleet has no room")
	case ReasonTooLarge:
		fmt.Fprintf(&b, "%s: needs %s, and never more than %s can be free", what, amount(s.Needed), amount(s.Limit))
	case ReasonShare:
		fmt.Fprintf(&b, "the job type's share of %s is used up: needs %s, %s of %s free", what, amount(s.Needed), amount(s.Free), amount(s.Limit))
	default:
		fmt.Fprintf(&b, "%s used up: needs %s, %s of %s free", what, amount(s.Needed), amount(s.Free), amount(s.Limit))
	}
	if s.Waited > 0 {
		fmt.Fprintf(&b, ", waited %s", s.Waited.Round(time.Millisecond))
	}
	if !s.RetryAt.IsZero() {
		fmt.Fprintf(&b, ", room at %s", s.RetryAt.UTC().Format(errorTime))
	}
	return b.String()
}

const errorTime = "2006-01-02T15:04:05.000Z07:00"

// CapacityError says what each model lacked. It is ErrNoCapacity, or ErrTooLarge if the job fits no model at all. If
// the job was refused because its context ends before it could start, it is context.DeadlineExceeded as well.
type CapacityError struct {
	JobType  string
	JobID    string
	Models   []Shortage // in the order in which they were tried
	RetryAt  time.Time  // the earliest time at which time alone makes room; zero if a job must end first, or if never
	Deadline time.Time  // of the context, if the job was refused because no model can have room before it; else zero
}

func (e *CapacityError) tooLarge() bool {
	return len(e.Models) > 0 && !slices.ContainsFunc(e.Models, func(s Shortage) bool { return s.Reason != ReasonTooLarge })
}

func (e *CapacityError) Error() string {
	sentinel := ErrNoCapacity
	if e.tooLarge() {
		sentinel = ErrTooLarge
	}
	var b strings.Builder
	b.WriteString(sentinel.Error())
	fmt.Fprintf(&b, " (job %s of type %q", e.JobID, e.JobType)
	if !e.Deadline.IsZero() {
		fmt.Fprintf(&b, "; the context's deadline %s comes before any room", e.Deadline.UTC().Format(errorTime))
	}
	for _, s := range e.Models {
		b.WriteString("; ")
		b.WriteString(s.String())
	}
	b.WriteString(")")
	return b.String()
}

// Is reports whether target is the sentinel error that this error stands for.
func (e *CapacityError) Is(target error) bool {
	switch target {
	case ErrTooLarge:
		return e.tooLarge()
	case ErrNoCapacity:
		return !e.tooLarge()
	case context.DeadlineExceeded:
		return !e.Deadline.IsZero()
	}
	return false
}

// Reject makes a job fail now: return it from the job's function. The attempt is charged used, which is not an
// estimate but what the provider counted: the zero Usage refunds everything. Run returns err.
func Reject(err error, used Usage) error { return newVerdict(err, used, false) }

// Delegate sends a job on to its next model: return it from the job's function. The attempt is charged used (the zero
// Usage refunds everything) and the job queues on the next model. Each model is tried once; if none is left, Run
// returns all causes joined.
func Delegate(err error, used Usage) error { return newVerdict(err, used, true) }

// verdict is what Reject and Delegate return: an error that says what to charge and whether to go on.
type verdict struct {
	err      error
	used     Usage
	delegate bool
}

func newVerdict(err error, used Usage, delegate bool) error {
	if err == nil {
		err = errors.New("llmrate: job refused by its function without a cause")
	}
	return &verdict{err: err, used: used, delegate: delegate}
}

func (v *verdict) Error() string { return v.err.Error() }
func (v *verdict) Unwrap() error { return v.err }

// fence hides a verdict inside an error that Run returns, so that a job which returns it from within another job does
// not settle that one too.
type fence struct{ err error }

func (f *fence) Error() string        { return f.err.Error() }
func (f *fence) Is(target error) bool { return errors.Is(f.err, target) }

func (f *fence) As(target any) bool {
	if _, verdicts := target.(**verdict); verdicts {
		return false
	}
	return errors.As(f.err, target)
}

// quoted lists names for an error message.
func quoted(names []string) string {
	q := make([]string, len(names))
	for i, name := range names {
		q[i] = strconv.Quote(name)
	}
	return strings.Join(q, ", ")
}

func shortDuration(d time.Duration) string {
	switch d {
	case time.Minute:
		return "minute"
	case 24 * time.Hour:
		return "day"
	}
	return d.String()
}
