package llmrate

import (
	"context"
	"time"
)

// A Backend shares the models' limits among the limiters of a fleet. It knows instances, limits, charges and who
// waits; it never sees job types, ratios or memory, which each limiter keeps to itself.
//
// Without one, a limiter has the models' limits to itself.
type Backend interface {
	// Join makes an instance a member of the fleet. An error means that the backend itself failed.
	Join(ctx context.Context, params JoinParams) (Member, error)
}

// JoinParams says who joins and what it brings.
type JoinParams struct {
	InstanceID string
	Models     []ModelLimits

	// Wake tells the limiter that a model may have room again. The backend may call it at any time, from any goroutine,
	// too often but not too seldom.
	Wake func(model string)
}

// ModelLimits is a model as a backend sees it: a vector of dimensions.
type ModelLimits struct {
	Model         string
	Dimensions    []Dimension
	MaxConcurrent int64 // 0: not limited
}

// Dimension is one windowed limit.
type Dimension struct {
	Resource   Resource
	Per        time.Duration
	Max        int64 // most in a fixed window, or what the bucket holds
	Continuous bool
	Rate       int64 // continuous: what refills in each Per
}

// A Member is one instance's place in the fleet. All methods are safe for concurrent use.
type Member interface {
	// Acquire reserves an amount for one job. That there is no room is a result, not an error; an error means that the
	// backend itself failed, and that nothing is reserved. It ends with ctx; what it reserved by then is given back.
	Acquire(ctx context.Context, params AcquireParams) (AcquireResult, error)

	// Settle ends a reservation, once. It does not wait for the backend and cannot fail: settlements are kept until
	// they are through.
	Settle(params SettleParams)

	// Leave takes the instance out of the fleet, after its last reservation is settled.
	Leave(ctx context.Context) error
}

// AcquireParams is what a job needs on one model.
type AcquireParams struct {
	Model string
	Need  Amounts
}

// Amounts is one number for each Resource.
type Amounts struct{ Requests, Tokens, InputTokens, OutputTokens int64 }

// AcquireResult is a backend's verdict.
type AcquireResult struct {
	Granted    bool
	Grant      any           // if granted: the backend's own note of the windows charged; comes back in SettleParams
	RetryAfter time.Duration // if not: when to ask again, unless Wake comes before; at least a millisecond
}

// SettleParams is how a reservation ended.
type SettleParams struct {
	Model string
	Grant any
	Need  Amounts // as reserved
	Used  Amounts // what was used, if known
	Known bool    // false: keep what was reserved charged
}
