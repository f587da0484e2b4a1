package vault

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/crypto/ssh"

	"accessbroker.internal/broker"
)

// timed says whether what a Vault made works until a time, whatever becomes of
// its lease, and until when:
//
//   - sessions of AWS STS: revoking their lease does nothing (AWS secrets engine);
//   - tokens of Kubernetes: that deletes what was made for them, and a token of a
//     service account that was there before goes on (Kubernetes secrets engine);
//   - tokens of Google Cloud, which have no lease (GCP secrets engine);
//   - what the entitlement says is like that.
//
// Each says itself how long it lives. Its lease does not: a Vault makes that no
// longer than the max_lease_ttl of the mount.
func (s *Spec) timed(a *vaultAnswer, kind string) (until time.Time, timed bool, err error) {
	leased := a.LeaseID != "" && a.LeaseDuration > 0
	says := func(name string) bool { return text(a.Data[name]) != "" }
	switch {
	case s.Lasting || s.static() || kind == "certificate":
		return time.Time{}, false, nil
	case says("secret_key") && (says("session_token") || says("security_token")):
		left, ok := seconds(a.Data["ttl"])
		if !ok {
			return time.Time{}, true, unsaid("the session")
		}
		return a.after(left), true, nil
	case says("service_account_token"):
		until, err = tokenEnd(text(a.Data["service_account_token"]))
		return until, true, err
	case a.LeaseID == "" && says("token") && says("expires_at_seconds"):
		at, err := strconv.ParseInt(text(a.Data["expires_at_seconds"]), 10, 64)
		if err != nil {
			return time.Time{}, true, unsaid("the token")
		}
		return time.Unix(at, 0), true, nil
	}
	return a.leaseEnd(), leased && s.Timed, nil
}

// tokenEnd reads when a token of Kubernetes ends, which is a JWT (RFC 7519,
// section 4.1.4). Who signed it makes no difference to that: it came from the
// Vault.
func tokenEnd(token string) (time.Time, error) {
	var claims jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(token, &claims); err != nil || claims.ExpiresAt == nil {
		return time.Time{}, unsaid("the token")
	}
	return claims.ExpiresAt.Time, nil
}

func unsaid(what string) error {
	return fmt.Errorf("%w: the answer does not say how long %s lives", broker.ErrIssuerRefused, what)
}

// byTime notes that only time ends what was made. Its lease, if it has one, is
// revoked all the same: that cleans up after it.
func (h *vaultHandle) byTime() {
	if h.Made = endByItself; h.Lease != "" {
		h.Made = endTimed
	}
}

// timedCredential is one that only time ends.
func timedCredential(kind string, fields map[string]string, l *broker.Lease, sent vaultCall, until time.Time) (broker.Credential, error) {
	if until.After(l.Expires.Add(vaultSlack + sent.late)) {
		return broker.Credential{}, outlives("what was made", until)
	}
	return seal(kind, fields, earlier(l.Expires, until, true), broker.RevokedAtExpiry), nil
}

// sessions says whether the path gives sessions of AWS STS, whichever of its
// ways the role of the Vault goes.
func (s *Spec) sessions() bool { return strings.Contains(s.Path, "/sts/") }

// MinTTL returns the shortest TTL of what the path makes; zero means no bound.
func (s *Spec) MinTTL() time.Duration {
	if s.sessions() {
		return stsMinTTL
	}
	return 0
}

// Bounds of AWS STS (AWS STS API Reference, AssumeRole), and how long a call may
// take to reach it.
const (
	stsMinTTL   = 15 * time.Minute
	stsMaxTTL   = 12 * time.Hour
	stsCallTime = 10 * time.Second
)

var errShortSession = &broker.Refusal{Err: broker.ErrInvalidTTL, Detail: fmt.Sprintf("AWS makes no credential for less than %s: ask for a longer ttl", broker.Short(stsMinTTL))}

// sessionTime returns the TTL to request for a session whose lease ends in left,
// and by how much the session may outlive the lease. STS counts from when the
// call arrives, which a slow call delays. Only the shortest session can outlive
// its lease: STS makes no shorter one.
func sessionTime(left time.Duration) (ttl, late time.Duration, err error) {
	if left < stsMinTTL-broker.IssueDeadline {
		return 0, 0, errShortSession
	}
	ttl = min(max(left-stsCallTime, stsMinTTL), stsMaxTTL).Truncate(time.Second)
	if ttl == stsMinTTL {
		late = broker.IssueDeadline
	}
	return ttl, late, nil
}

// sshCertificate holds an SSH certificate to its lease, and to the names that
// were asked for (OpenSSH, PROTOCOL.certkeys).
func sshCertificate(fields map[string]string, l *broker.Lease, sent vaultCall) (broker.Credential, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(fields["signed_key"]))
	cert, ok := key.(*ssh.Certificate)
	if err != nil || !ok {
		return broker.Credential{}, fmt.Errorf("%w: the answer's signed key can't be read as a certificate", broker.ErrIssuerRefused)
	}
	if cert.ValidBefore > uint64(l.Expires.Add(vaultSlack).Unix()) { // "for ever" is the largest number there is
		return broker.Credential{}, fmt.Errorf(`%w: the certificate lives for longer than its lease: write ttl: "${ttl}" in data`, broker.ErrIssuerRefused)
	}
	if asked, ok := sent.data["valid_principals"].(string); ok {
		names := strings.Split(asked, ",")
		for _, name := range cert.ValidPrincipals {
			if !slices.Contains(names, name) {
				return broker.Credential{}, fmt.Errorf("%w: the certificate names %q, which was not asked for", broker.ErrIssuerRefused, name)
			}
		}
	}
	if len(cert.ValidPrincipals) == 0 {
		return broker.Credential{}, fmt.Errorf("%w: the certificate names nobody, and so lets in as everybody: write valid_principals in data", broker.ErrIssuerRefused)
	}
	return seal("data", fields, earlier(l.Expires, time.Unix(int64(cert.ValidBefore), 0), true), broker.RevokedAtExpiry), nil
}
