package vault

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// timeLeft returns the lifetime to request for a credential: the rest of the lease,
// less the time by which Vault's clock is ahead if Vault signs an expiry by that
// clock. AWS counts sessions by its own clock.
func (s *Spec) timeLeft(l *broker.Lease, ahead time.Duration) time.Duration {
	left := time.Until(l.Expires)
	// The Date header has whole seconds: less than one means nothing.
	if ahead > time.Second && s.setsTTL() && !s.sessions() {
		left -= ahead
	}
	return left
}

// request returns the request that creates the credential of a lease, valid for
// left.
func (s *Spec) request(l *broker.Lease, left time.Duration) (request, error) {
	if left < time.Second {
		return request{}, s.noTimeLeft(l)
	}
	ttl := left
	var r request
	var err error
	if s.sessions() {
		if ttl, r.late, err = sessionTTL(left); err != nil {
			return request{}, err
		}
	}
	if r.path, err = s.path(l, ttl); err != nil {
		return request{}, err
	}
	r.data = s.data(l, ttl)
	if s.Wrap {
		r.wrap = left
	}
	return r, nil
}

// noTimeLeft returns the error for a lease with less than a second left. Vault's
// clock is at fault only if the lease has more than that by ours.
func (s *Spec) noTimeLeft(l *broker.Lease) error {
	rest := time.Until(l.Expires)
	if rest < time.Second {
		return &fault{kind: broker.ErrIssuerRefused, text: "the lease ends within a second: request a longer ttl"}
	}
	return &fault{kind: broker.ErrIssuerRefused, text: fmt.Sprintf("Vault's clock is ahead by more than the %s that the lease has left: set the clock, or request a longer ttl", rest.Truncate(time.Second))}
}

// policies returns the sorted policies of the lease's token.
func (s *Spec) policies(l *broker.Lease) []string {
	all := slices.Clone(s.Policies)
	for _, scope := range l.Scopes {
		all = append(all, s.ScopePolicies[scope]...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// path fills in the path. The requester chooses one segment at most: a value
// with "/" or ".." is refused.
func (s *Spec) path(l *broker.Lease, ttl time.Duration) (string, error) {
	var err error
	filled := reference.ReplaceAllStringFunc(s.Path, func(ref string) string {
		value, given := variable(ref[2:len(ref)-1], l, ttl)
		if !given || !pathValue.MatchString(value) || strings.Contains(value, "..") || value == signVerbatim {
			err = &broker.Refusal{Err: broker.ErrInvalidParameter, Detail: ref[2:len(ref)-1] + " can't be a part of a path"}
		}
		return value
	})
	return filled, err
}

// data returns the data to write, with parameters and variables replaced. It omits
// values with a parameter that the request lacks. It returns nil if the path is read.
func (s *Spec) data(l *broker.Lease, ttl time.Duration) map[string]any {
	if s.Data == nil {
		return nil
	}
	out := map[string]any{}
	for name, text := range s.Data {
		missing := false
		filled := reference.ReplaceAllStringFunc(text, func(ref string) string {
			value, given := variable(ref[2:len(ref)-1], l, ttl)
			missing = missing || !given
			return value
		})
		if !missing {
			out[name] = filled
		}
	}
	return out
}

var leaseVariables = []string{"holder", "ttl", "lease", "request", "entitlement"}

// variable returns the value of a lease variable or of a parameter.
func variable(name string, l *broker.Lease, ttl time.Duration) (value string, given bool) {
	switch name {
	case "holder":
		return l.Holder, true
	case "ttl":
		return ttlText(ttl), true
	case "lease":
		return l.ID.String(), true
	case "request":
		return l.Request.String(), true
	case "entitlement":
		return l.Entitlement, true
	}
	value, given = l.Parameters[name]
	return value, given
}

// setsTTL reports whether the request tells Vault how long the credential may
// last.
func (s *Spec) setsTTL() bool {
	const ttl = "${ttl}"
	for _, text := range s.Data {
		if strings.Contains(text, ttl) {
			return true
		}
	}
	return strings.Contains(s.Path, ttl)
}
