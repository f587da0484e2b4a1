package vault

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// vaultToken is the credential that is the lease's own token.
func vaultToken(l *broker.Lease, token string) broker.Credential {
	return seal("vault", map[string]string{"token": token}, l.Expires, broker.RevokedImmediate)
}

// seal makes a credential of what an upstream gave. The record commits to it
// with a salt: the commitment opens to nobody who has not kept both.
func seal(kind string, fields map[string]string, expires time.Time, truth broker.Revocation) broker.Credential {
	text := audit.NewObject()
	for name, value := range fields {
		text.String(name, strings.ToValidUTF8(value, "?"))
	}
	hash, _ := audit.Commit(string(text.Bytes()))
	return broker.Credential{Type: kind, Secret: broker.NewSecret(fields), Expires: expires, Revocation: truth, Hash: hash}
}

// credential makes a credential of an answer, and tells the handle how it
// ends. What doesn't end is refused, unless the entitlement says so, and so is
// what ends later than approvers were shown.
func (s *Spec) credential(a *vaultAnswer, l *broker.Lease, sent vaultCall, h *vaultHandle) (broker.Credential, error) {
	if s.Wrap {
		return wrapped(a, l, h)
	}
	c, err := s.unwrapped(a, l, sent, h)
	if err == nil && promises[c.Revocation] > promises[s.Revocation()] {
		return broker.Credential{}, fmt.Errorf("%w: approvers were shown the revocation %s, and what came has %s: docs/vault.md says how to write such an entitlement", broker.ErrIssuerRefused, s.Revocation(), c.Revocation)
	}
	return c, err
}

// promises orders what ending a credential can mean, the best first.
var promises = map[broker.Revocation]int{broker.RevokedImmediate: 0, broker.RevokedAtExpiry: 1, broker.RevokedAtRotation: 2, broker.RevokedNever: 3}

func (s *Spec) unwrapped(a *vaultAnswer, l *broker.Lease, sent vaultCall, h *vaultHandle) (broker.Credential, error) {
	kind, fields, err := s.fields(a)
	if err != nil {
		return broker.Credential{}, err
	}
	until, timed, err := s.timed(a, kind)
	if timed {
		h.byTime()
	}
	switch {
	case err != nil:
		return broker.Credential{}, err
	case timed:
		return timedCredential(kind, fields, l, sent, until)
	case a.LeaseID != "" && !s.Lasting:
		if kind == "certificate" {
			return certificate(fields, l, sent, broker.RevokedImmediate, h)
		}
		return seal(kind, fields, earlier(l.Expires, a.leaseEnd(), a.LeaseDuration > 0), broker.RevokedImmediate), nil
	case kind == "certificate":
		h.Made = endByItself
		return certificate(fields, l, sent, broker.RevokedAtExpiry, h)
	case s.static():
		h.Made = endByItself
		rotates, ok := seconds(a.Data["ttl"])
		next := time.Now().Add(rotates)
		c := seal(kind, fields, earlier(l.Expires, next, ok), broker.RevokedAtRotation)
		if ok {
			c.Rotates = next.Truncate(time.Second)
		}
		return c, nil
	case fields["signed_key"] != "" && s.signs():
		h.Made = endByItself
		return sshCertificate(fields, l, sent)
	case s.Lasting:
		h.Made = endByItself
		return seal(kind, fields, l.Expires, broker.RevokedNever), nil
	}
	h.Made = endNothing // nothing that ends: it was there before, and is not given out
	return broker.Credential{}, fmt.Errorf("%w: what this path gives has no lease and doesn't end; an entitlement that means that says ephemeral: false", broker.ErrIssuerRefused)
}

// wrapped is a wrapping token. The broker never sees what is in it, so it can
// end it only by the token of the lease.
func wrapped(a *vaultAnswer, l *broker.Lease, h *vaultHandle) (broker.Credential, error) {
	if a.WrapInfo == nil || a.WrapInfo.Token == "" {
		return broker.Credential{}, fmt.Errorf("%w: the answer is not wrapped", broker.ErrIssuerRefused)
	}
	h.Made = endWrapped
	ends := time.Now().Add(time.Duration(a.WrapInfo.TTL) * time.Second)
	return seal("data", map[string]string{"wrapping_token": a.WrapInfo.Token}, earlier(l.Expires, ends, true), ""), nil
}

func earlier(lease, other time.Time, known bool) time.Time {
	if known && other.Before(lease) {
		return other.Truncate(time.Second)
	}
	return lease
}

// fields finds out what an answer is, and gives its fields as text.
func (s *Spec) fields(a *vaultAnswer) (kind string, fields map[string]string, err error) {
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
	kind, fields = shape(all)
	if s.Type == "data" {
		kind, fields = "data", all
	}
	if s.Type != "" && s.Type != kind {
		return "", nil, fmt.Errorf("%w: the answer is no %s; it has the fields %s", broker.ErrIssuerRefused, s.Type, strings.Join(slices.Sorted(maps.Keys(all)), ", "))
	}
	if len(fields) == 0 {
		return "", nil, fmt.Errorf("%w: the answer is empty", broker.ErrIssuerRefused)
	}
	return kind, fields, nil
}

// shape recognizes what the engines of Vault give.
func shape(all map[string]string) (string, map[string]string) {
	pick := func(kind string, from ...string) (string, map[string]string) {
		out := map[string]string{}
		for i := 0; i < len(from); i += 2 {
			if value := all[from[i+1]]; value != "" {
				out[from[i]] = value
			}
		}
		return kind, out
	}
	switch {
	case all["username"] != "" && all["password"] != "":
		return pick("userpass", "username", "username", "password", "password")
	case all["certificate"] != "" && all["serial_number"] != "":
		if all["ca_chain"] == "" {
			all["ca_chain"] = all["issuing_ca"]
		}
		return pick("certificate", "certificate", "certificate", "private_key", "private_key", "chain", "ca_chain")
	case all["access_key"] != "" && all["secret_key"] != "":
		if all["session_token"] == "" {
			all["session_token"] = all["security_token"]
		}
		return pick("aws", "access_key_id", "access_key", "secret_access_key", "secret_key", "session_token", "session_token")
	}
	return "data", all
}

// text gives a value as text: strings as they are, lists of strings a line
// each, everything else as JSON.
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

func seconds(value any) (time.Duration, bool) {
	n, ok := value.(json.Number)
	if !ok {
		return 0, false
	}
	s, err := n.Int64()
	return time.Duration(s) * time.Second, err == nil && s > 0
}
