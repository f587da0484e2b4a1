package vault

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// tokenCredential returns the lease's own token as its credential.
func tokenCredential(l *broker.Lease, t leaseToken) (broker.Credential, error) {
	return unexpired(newCredential("vault", map[string]string{"token": t.token}, earlier(l.Expires, t.ends), broker.RevokedImmediate))
}

// newCredential returns a credential of these fields. Its hash is a salted
// commitment, because a guessable secret could be found from a plain one.
func newCredential(kind string, fields map[string]string, expires time.Time, revocation broker.Revocation) broker.Credential {
	text := audit.NewObject()
	for name, value := range fields {
		text.String(name, strings.ToValidUTF8(value, "?"))
	}
	hash, _ := audit.Commit(string(text.Bytes()))
	return broker.Credential{Type: kind, Secret: broker.NewSecret(fields), Expires: expires, Revocation: revocation, Hash: hash}
}

// credential converts an answer to a credential, and notes in the handle how it
// ends. It refuses a credential that outlives its lease, and one with a worse
// revocation than approvers were shown. The handle is right even then: the refused
// credential has to be revoked.
func (s *Spec) credential(a *answer, l *broker.Lease, sent request, h *handle) (broker.Credential, error) {
	if s.Wrap {
		return s.wrapped(a, l, h)
	}
	c, err := s.unwrapped(a, l, sent, h)
	if err == nil {
		c, err = unexpired(c)
	}
	if err == nil && revocationRank[c.Revocation] > revocationRank[s.Revocation()] {
		return broker.Credential{}, fmt.Errorf("%w: approvers were shown revocation %s, but the credential has %s: docs/vault.md says how to write such an entitlement", broker.ErrIssuerRefused, s.Revocation(), c.Revocation)
	}
	return c, err
}

// revocationRank orders revocations from the best to the worst.
var revocationRank = map[broker.Revocation]int{broker.RevokedImmediate: 0, broker.RevokedAtExpiry: 1, broker.RevokedAtRotation: 2, broker.RevokedNever: 3}

func (s *Spec) unwrapped(a *answer, l *broker.Lease, sent request, h *handle) (broker.Credential, error) {
	kind, fields, err := s.fields(a)
	if err != nil {
		return broker.Credential{}, err
	}
	end, bound, err := s.expiryBound(a, kind)
	if bound {
		h.expires()
	}
	switch {
	case err != nil:
		return broker.Credential{}, err
	case bound:
		return expiringCredential(kind, fields, l, sent, end)
	case a.LeaseID != "" && !s.Permanent:
		return leasedCredential(kind, fields, a, l, sent, h)
	}
	return s.unleased(kind, fields, a, l, sent, h)
}

// expiringCredential returns a credential that ends only at its expiry.
func expiringCredential(kind string, fields map[string]string, l *broker.Lease, sent request, end ending) (broker.Credential, error) {
	if end.latest.After(l.Expires.Add(maxOutlive + sent.late)) {
		return broker.Credential{}, errOutlives("the credential", end.latest)
	}
	return newCredential(kind, fields, earlier(l.Expires, end.earliest), broker.RevokedAtExpiry), nil
}

// leasedCredential returns a credential that ends when Vault revokes its lease.
func leasedCredential(kind string, fields map[string]string, a *answer, l *broker.Lease, sent request, h *handle) (broker.Credential, error) {
	end := a.statedEnd(a.leaseEnd())
	if kind == "certificate" {
		c, err := certificate(fields, l, sent, broker.RevokedImmediate, h)
		c.Expires = earlier(c.Expires, end)
		return c, err
	}
	return newCredential(kind, fields, earlier(l.Expires, end), broker.RevokedImmediate), nil
}

// unleased returns a credential without a Vault lease, if it ends in another way
// or the entitlement declares that it does not.
func (s *Spec) unleased(kind string, fields map[string]string, a *answer, l *broker.Lease, sent request, h *handle) (broker.Credential, error) {
	h.Made = madeExpiring
	switch {
	case kind == "certificate":
		return certificate(fields, l, sent, broker.RevokedAtExpiry, h)
	case s.static():
		return rotating(kind, fields, a, l)
	case fields["signed_key"] != "" && s.signs():
		return sshCertificate(fields, l, sent)
	case s.Permanent:
		return newCredential(kind, fields, l.Expires, broker.RevokedNever), nil
	}
	h.Made = madeNothing // the secret existed before, and is not handed out
	return broker.Credential{}, fmt.Errorf("%w: the secret at this path has no lease and never ends; if that is intended, set ephemeral: false", broker.ErrIssuerRefused)
}

// rotating returns the password of a static role, which is valid until the next
// rotation. A password that is due is not handed out: Vault may replace it at once.
func rotating(kind string, fields map[string]string, a *answer, l *broker.Lease) (broker.Credential, error) {
	c := newCredential(kind, fields, l.Expires, broker.RevokedAtRotation)
	if a.Data["ttl"] == nil {
		return c, nil
	}
	left, ok := seconds(a.Data["ttl"])
	if !ok {
		return broker.Credential{}, &fault{kind: broker.ErrIssuerUnavailable, text: "the password is due to be rotated", retry: rotationTime}
	}
	next := a.sent.Add(left)
	c.Expires, c.Rotates = earlier(l.Expires, next), next.Truncate(time.Second)
	return c, nil
}

// rotationTime is how long Vault may take to rotate a password that is due. Its queue
// runs every five seconds.
const rotationTime = 5 * time.Second

// wrapped returns a wrapping token. The broker never sees its content, and can
// end that only by revoking the lease's token.
func (s *Spec) wrapped(a *answer, l *broker.Lease, h *handle) (broker.Credential, error) {
	if a.WrapInfo == nil || a.WrapInfo.Token == "" {
		return broker.Credential{}, fmt.Errorf("%w: the answer is not wrapped", broker.ErrIssuerRefused)
	}
	h.Made = madeWrapped
	end := a.sent.Add(time.Duration(a.WrapInfo.TTL) * time.Second)
	if s.endsAtExpiry() {
		// The content's expiry is not visible, nor whether it has a lease, which ends
		// with the token.
		if err := (ending{a.tokenEnds, l.Expires}).agreed("the token that made it"); err != nil {
			return broker.Credential{}, err
		}
	}
	return unexpired(newCredential("data", map[string]string{"wrapping_token": a.WrapInfo.Token}, earlier(earlier(l.Expires, end), a.tokenEnds), ""))
}

// unexpired returns a credential that is not over yet.
func unexpired(c broker.Credential) (broker.Credential, error) {
	if now := time.Now(); !c.Expires.After(now) {
		return broker.Credential{}, &endsEarly{"the credential expires at " + c.Expires.UTC().Format(time.RFC3339) + ", which is over: raise the TTLs of the token role, of the mount and of the role that the path names"}
	}
	return c, nil
}

// earlier returns the earlier of a lease's expiry and another time, to the
// second.
func earlier(lease, other time.Time) time.Time {
	if !other.IsZero() && other.Before(lease) {
		return other.Truncate(time.Second)
	}
	return lease
}

// fields returns the type of an answer and its fields as text.
func (s *Spec) fields(a *answer) (kind string, fields map[string]string, err error) {
	if a.Auth != nil {
		return "", nil, fmt.Errorf("%w: the path makes tokens: use %s with the policies that they should have", broker.ErrIssuerRefused, TokenPath)
	}
	data := a.Data
	if inner, ok := data["data"].(map[string]any); ok && data["metadata"] != nil {
		data = inner // KV, version 2
	}
	all := map[string]string{}
	for name, value := range data {
		all[name] = text(value)
	}
	kind, fields = recognize(all)
	if s.Type == "data" {
		kind, fields = "data", all
	}
	if s.Type != "" && s.Type != kind {
		return "", nil, fmt.Errorf("%w: the answer is not of type %s; it has the fields %s", broker.ErrIssuerRefused, s.Type, strings.Join(slices.Sorted(maps.Keys(all)), ", "))
	}
	if len(fields) == 0 {
		return "", nil, fmt.Errorf("%w: the answer is empty", broker.ErrIssuerRefused)
	}
	return kind, fields, nil
}

// recognize returns the type of secret that these fields make, and the fields
// under the broker's own names.
func recognize(all map[string]string) (kind string, fields map[string]string) {
	switch {
	case all["username"] != "" && all["password"] != "":
		return "userpass", pick(all, map[string]string{"username": "username", "password": "password"})
	case all["certificate"] != "" && all["serial_number"] != "":
		if all["ca_chain"] == "" {
			all["ca_chain"] = all["issuing_ca"]
		}
		return "certificate", pick(all, map[string]string{"certificate": "certificate", "private_key": "private_key", "chain": "ca_chain"})
	case all["access_key"] != "" && all["secret_key"] != "":
		if all["session_token"] == "" {
			all["session_token"] = all["security_token"]
		}
		return "aws", pick(all, map[string]string{"access_key_id": "access_key", "secret_access_key": "secret_key", "session_token": "session_token"})
	}
	return "data", all
}

// pick returns the fields that names maps to, without the empty ones.
func pick(all, names map[string]string) map[string]string {
	out := map[string]string{}
	for name, from := range names {
		if all[from] != "" {
			out[name] = all[from]
		}
	}
	return out
}

// text returns a string as it is, a list with one element per line, and any
// other value as JSON.
func text(value any) string {
	switch v := value.(type) {
	case nil:
		return ""
	case string:
		return v
	case json.Number:
		return v.String()
	case []any:
		lines := make([]string, len(v))
		for i, line := range v {
			lines[i] = text(line)
		}
		return strings.Join(lines, "\n")
	}
	b, err := json.Marshal(value)
	if err != nil {
		return ""
	}
	return string(b)
}

// seconds reads a positive number of seconds, which some engines write as text.
func seconds(value any) (time.Duration, bool) {
	n, err := strconv.ParseInt(text(value), 10, 64)
	return time.Duration(min(n, maxSeconds)) * time.Second, err == nil && n > 0
}

// maxSeconds keeps a duration from overflowing.
const maxSeconds = math.MaxInt64 / int64(time.Second)
