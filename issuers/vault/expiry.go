package vault

import (
	"fmt"
	"strconv"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"accessbroker.internal/broker"
)

// expiryBound reports whether a credential works until a time even if its Vault
// lease is revoked, and returns that time. It is true of
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
func (s *Spec) expiryBound(a *answer, kind string) (until time.Time, bound bool, err error) {
	has := func(name string) bool { return text(a.Data[name]) != "" }
	switch {
	case s.Permanent || s.static() || kind == "certificate":
		return time.Time{}, false, nil
	case has("secret_key") && (has("session_token") || has("security_token")):
		left, ok := seconds(a.Data["ttl"])
		if !ok {
			return time.Time{}, true, errNoExpiry("the session")
		}
		return a.after(left), true, nil
	case has("service_account_token"):
		until, err = tokenExpiry(text(a.Data["service_account_token"]))
		return until, true, err
	case a.LeaseID == "" && has("token") && has("expires_at_seconds"):
		at, err := strconv.ParseInt(text(a.Data["expires_at_seconds"]), 10, 64)
		if err != nil {
			return time.Time{}, true, errNoExpiry("the token")
		}
		return time.Unix(at, 0), true, nil
	}
	leased := a.LeaseID != "" && a.LeaseDuration > 0
	return a.leaseEnd(), leased && s.AtExpiry, nil
}

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
