package vault

import (
	"fmt"
	"strconv"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"accessbroker.internal/broker"
)

// expiryBound reports whether a credential works until its expiry even if its Vault
// lease is revoked, and returns when that is. It is true of
//
//   - sessions of AWS STS: revoking their lease does nothing (AWS secrets engine);
//   - tokens of Kubernetes: revoking their lease deletes the objects made for
//     them, and a token of an existing service account still works (Kubernetes
//     secrets engine);
//   - tokens of Google Cloud, which have no lease (GCP secrets engine);
//   - what the entitlement declares with revocation: at_expiry.
//
// The first three state their expiry themselves. Their lease does not: Vault cuts
// it to the max_lease_ttl of the mount.
func (s *Spec) expiryBound(a *answer, kind string) (end ending, bound bool, err error) {
	has := func(name string) bool { return text(a.Data[name]) != "" }
	switch {
	case s.Permanent || s.static() || kind == "certificate":
		return ending{}, false, nil
	case has("secret_key") && (has("session_token") || has("security_token")):
		left, ok := seconds(a.Data["ttl"])
		if !ok {
			return ending{}, true, errNoExpiry("the session")
		}
		return a.after(left), true, nil
	case has("service_account_token"):
		until, err := tokenExpiry(text(a.Data["service_account_token"]))
		end = ending{until, until}
		if err == nil && a.LeaseID != "" {
			// Vault deletes a service account that it made with the lease, which ends
			// the token before its expiry. The answer does not say who made it.
			end.earliest = earlier(until, a.leaseEnd())
			err = end.agreed("its Vault lease")
		}
		return end, true, err
	case a.LeaseID == "" && has("token") && has("expires_at_seconds"):
		at, err := strconv.ParseInt(text(a.Data["expires_at_seconds"]), 10, 64)
		if err != nil {
			return ending{}, true, errNoExpiry("the token")
		}
		return ending{time.Unix(at, 0), time.Unix(at, 0)}, true, nil
	case s.AtExpiry && a.LeaseID != "" && a.LeaseDuration > 0:
		until := a.sent.Add(time.Duration(a.LeaseDuration) * time.Second)
		end = ending{a.statedEnd(a.leaseEnd()), until}
		return end, true, end.agreed("the token that made it")
	}
	return ending{}, false, nil
}

// An ending is the two times between which a credential ends. Its holder is shown the
// earliest, and the latest must not be later than the lease.
type ending struct{ earliest, latest time.Time }

// maxDisagreement is how far the two may be apart: they may come from two clocks.
const maxDisagreement = time.Minute

// agreed refuses an ending of which neither time is the truth: what ends early may end
// the credential, or may not.
func (e ending) agreed(early string) error {
	if e.latest.Sub(e.earliest) <= maxDisagreement {
		return nil
	}
	return &endsEarly{fmt.Sprintf("the credential expires at %s, but %s ends at %s already, and may end the credential: raise token_explicit_max_ttl of the token role and max_lease_ttl of the mounts, or request a shorter ttl",
		e.latest.UTC().Format(time.RFC3339), early, e.earliest.UTC().Format(time.RFC3339))}
}

// An endsEarly is the error for a credential that ends before it can be used, or whose
// end is not certain.
type endsEarly struct{ text string }

func (e *endsEarly) Error() string { return broker.ErrIssuerRefused.Error() + ": " + e.text }
func (e *endsEarly) Unwrap() error { return broker.ErrIssuerRefused }

// Fields in which engines state the end of a credential, as a duration and as a time.
var (
	durationFields = []string{"ttl", "token_ttl", "lease_duration", "expires_in"}
	timeFields     = []string{"expiration", "expires_at", "expires_at_seconds", "expire_time", "expiry", "not_after"}
)

// statedEnd returns the earliest of end and the times in the answer's fields.
func (a *answer) statedEnd(end time.Time) time.Time {
	for _, name := range durationFields {
		if left, ok := seconds(a.Data[name]); ok {
			end = earlier(end, a.sent.Add(left))
		}
	}
	for _, name := range timeFields {
		end = earlier(end, moment(a.Data[name]))
	}
	return end
}

// moment reads a time: RFC 3339, or seconds since 1970. It is zero if value is neither.
func moment(value any) time.Time {
	if at, err := time.Parse(time.RFC3339, text(value)); err == nil {
		return at
	}
	if left, ok := seconds(value); ok && left > minMoment {
		return time.Unix(int64(left/time.Second), 0)
	}
	return time.Time{}
}

// minMoment is since when seconds since 1970 can be the end of a credential: smaller
// numbers are durations.
const minMoment = 1e9 * time.Second

// tokenExpiry returns when a token of Kubernetes expires. The token is a JWT
// (RFC 7519, section 4.1.4). Its signature is not verified: the broker does not
// know the cluster's keys, and trusts the Vault that the token came from.
func tokenExpiry(token string) (time.Time, error) {
	var claims jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(token, &claims); err != nil || claims.ExpiresAt == nil {
		return time.Time{}, errNoExpiry("the token")
	}
	return claims.ExpiresAt.Time, nil
}

func errNoExpiry(what string) error {
	return fmt.Errorf("%w: the answer does not say when %s expires", broker.ErrIssuerRefused, what)
}

// errOutlives is the error for a credential that outlives its lease.
func errOutlives(what string, until time.Time) error {
	return fmt.Errorf(`%w: %s is valid until %s, which is longer than its lease: write ttl: "${ttl}" in data`, broker.ErrIssuerRefused, what, until.UTC().Format(time.RFC3339))
}

// maxOutlive is by how much a credential may outlive its lease: Vault's clock is
// read, and expiries are stated, to the second.
const maxOutlive = 2 * time.Second

// Bounds of AWS STS (AWS STS API Reference, AssumeRole), and how long a call may
// take to reach it.
const (
	stsMinTTL   = 15 * time.Minute
	stsMaxTTL   = 12 * time.Hour
	stsCallTime = 10 * time.Second
)

var errShortSession = &broker.Refusal{Err: broker.ErrInvalidTTL, Detail: fmt.Sprintf("AWS makes no session shorter than %s: request a longer ttl", broker.FormatDuration(stsMinTTL))}

// sessionTTL returns the TTL to request for a session whose lease ends in left, and
// how long the session may outlive the lease. STS counts from when the call
// arrives, which a slow call delays. Only the shortest session can outlive its
// lease, because STS issues no shorter one.
func sessionTTL(left time.Duration) (ttl, late time.Duration, err error) {
	if left < stsMinTTL-broker.IssueDeadline {
		return 0, 0, errShortSession
	}
	ttl = min(max(left-stsCallTime, stsMinTTL), stsMaxTTL).Truncate(time.Second)
	if ttl == stsMinTTL {
		late = broker.IssueDeadline
	}
	return ttl, late, nil
}
