// Package vault issues credentials through HashiCorp Vault or OpenBao. Each
// credential is created with its own Vault token, which has the entitlement's
// policies and expires with the lease. The broker's own token does not have these
// policies.
package vault

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"

	"accessbroker.internal/broker"
)

// Config configures the connection to Vault.
type Config struct {
	Name      string // of the issuer, for errors and log lines
	Address   string // https://vault.acme.test:8200
	Namespace string
	TLS       *tls.Config // nil: the system's roots, no client certificate
	Login     Login
	TokenRole string // the role in auth/token/roles/ under which lease tokens are created
	Broker    string // identifies this broker in the metadata of lease tokens; others may use the same Vault
	Log       *slog.Logger
}

// An Issuer issues credentials from one Vault. It is safe for concurrent use.
//
// Prepare creates the token of the lease, an orphan. Its accessor is the first
// handle: the broker records it before Issue uses the token, so that the credential
// can be revoked after a crash.
type Issuer struct {
	cfg     Config
	at      string      // identifies the Vault in handles
	once    *api.Client // sends each request once, for requests that create a credential
	retries *api.Client // retries, for requests that are idempotent
	lists   *api.Client // the same, for answers that may be long
	session *session

	unlisted sync.Map // PKI mounts that refused to revoke by serial number; each is logged once
}

var _ broker.Issuer = (*Issuer)(nil)

const (
	renewEvery = time.Second     // poll interval; a token of 10s is due after 6.7s
	renewPause = 5 * time.Second // after a failed renewal
)

// New returns an issuer. It does not contact Vault and starts no goroutine;
// the caller runs Run, which renews the broker's own token.
func New(cfg Config) (*Issuer, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	where := sha256.Sum256([]byte(strings.TrimSuffix(cfg.Address, "/") + "\n" + cfg.Namespace))
	v := &Issuer{cfg: cfg, at: hex.EncodeToString(where[:8])}
	transport := newTransport(cfg.TLS)
	var err error
	if v.once, err = newClient(cfg, sentOnce{transport}, 0); err != nil {
		return nil, err
	}
	if v.retries, err = newClient(cfg, transport, 2); err != nil {
		return nil, err
	}
	if v.lists, err = newClient(cfg, bounded{transport.(bounded).RoundTripper, maxList}, 2); err != nil {
		return nil, err
	}
	v.session = &session{login: cfg.Login, client: v.retries, log: cfg.Log, name: cfg.Name}
	return v, nil
}

// Run renews the broker's own token until ctx ends.
func (v *Issuer) Run(ctx context.Context) error {
	next := time.NewTimer(renewEvery)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
		}
		wait := renewEvery
		if err := v.session.renew(ctx); err != nil && ctx.Err() == nil {
			v.cfg.Log.WarnContext(ctx, "renewing the broker's own Vault token", "issuer", v.cfg.Name, "err", err)
			wait = renewPause
		}
		next.Reset(wait)
	}
}

// own sends a request with the broker's own token. If Vault no longer accepts that
// token, own logs in and sends it again. Its errors are faults. It requires an answer
// that Vault can have given: a page of a proxy confirms no revocation.
func (v *Issuer) own(ctx context.Context, c *api.Client, r request) (*answer, error) {
	as, err := v.session.get(ctx)
	if err != nil {
		return nil, err
	}
	a, err := send(ctx, c, as, r)
	gone := says(err, invalidToken) || says(err, noParent)
	if gone || status(err) == http.StatusForbidden {
		if as, replaced := v.session.replace(ctx, as.token, gone); replaced {
			a, err = send(ctx, c, as, r)
		}
	}
	if says(err, invalidToken) || says(err, noParent) {
		err = unavailable(err) // the caller is not at fault
	}
	return a, err
}

// write sends data to path with the broker's own token.
func (v *Issuer) write(ctx context.Context, path string, data map[string]any) error {
	_, err := v.own(ctx, v.retries, request{path: path, data: data})
	return err
}

// Prepare creates the token of the lease.
func (v *Issuer) Prepare(ctx context.Context, o broker.Order) (broker.Prepared, error) {
	spec, ok := o.Entitlement.Spec.(*Spec)
	if !ok {
		return broker.Prepared{}, fmt.Errorf("entitlement %s has no Vault spec", o.Entitlement.Name)
	}
	ttl := wholeSeconds(time.Until(o.Lease.Expires))
	a, err := v.createToken(ctx, spec, &o.Lease, ttl)
	if err != nil {
		return broker.Prepared{}, fmt.Errorf("creating the token of a lease: %w", err)
	}
	if err := v.checkToken(a.Auth, ttl); err != nil {
		if a.Auth.Accessor != "" {
			v.discard(ctx, a.Auth.Accessor)
		}
		return broker.Prepared{}, err
	}
	return broker.Prepared{
		Handle: handle{Accessor: a.Auth.Accessor, Made: madeUnknown, At: v.at}.encode(),
		Key:    leaseToken{a.Auth.ClientToken, a.index, a.ahead, a.sent.Add(time.Duration(a.Auth.LeaseDuration) * time.Second)}.secret(),
	}, nil
}

// createToken returns Vault's answer with a new token for the lease. It sends its
// request once, like Issue: after a lost answer, a second attempt would create a second
// token, and nothing would record the end of the first.
func (v *Issuer) createToken(ctx context.Context, spec *Spec, l *broker.Lease, ttl time.Duration) (*answer, error) {
	a, err := v.own(ctx, v.once, request{path: "auth/token/create/" + v.cfg.TokenRole, data: map[string]any{
		"policies": spec.policies(l), "no_default_policy": true, "type": "service", "renewable": false,
		"ttl": ttlText(ttl), "explicit_max_ttl": ttlText(ttl), "display_name": l.ID.String(),
		"meta": map[string]string{"lease": l.ID.String(), "request": l.Request.String(), "entitlement": l.Entitlement, "holder": l.Holder, "broker": v.cfg.Broker, "issuer": v.cfg.Name},
	}})
	if err == nil && a.Auth == nil {
		err = errUnreadable
	}
	return a, err
}

// checkToken refuses a token that can't serve a lease for which it was requested with
// that TTL. A role and a mount can shorten the TTL (token_explicit_max_ttl,
// max_lease_ttl), but must not lengthen it.
func (v *Issuer) checkToken(auth *api.SecretAuth, ttl time.Duration) error {
	refused := func(what, fix string) error {
		return fmt.Errorf("%w: token role %q creates %s: %s", broker.ErrIssuerRefused, v.cfg.TokenRole, what, fix)
	}
	switch lifetime := time.Duration(auth.LeaseDuration) * time.Second; {
	case auth.ClientToken == "" || auth.Accessor == "":
		return refused("no service tokens", "set token_type=service")
	case !auth.Orphan:
		// A child token, and everything that it creates, would end with the
		// broker's own token.
		return refused("child tokens", "set orphan=true")
	case lifetime <= 0:
		return refused("tokens that never expire", "remove token_period, and set token_explicit_max_ttl")
	case lifetime > ttl+maxOutlive:
		return refused(fmt.Sprintf("tokens for %s that were requested for %s, and would outlive their leases", broker.FormatDuration(lifetime), broker.FormatDuration(ttl)), "remove token_period")
	}
	return nil
}

// A leaseToken is the token of a lease, between Prepare and Issue.
type leaseToken struct {
	token string
	index string        // see access
	ahead time.Duration // of Vault's clock
	ends  time.Time     // its expiry, which Vault may have put before that of the lease
}

func (t leaseToken) secret() broker.Secret {
	fields := map[string]string{"token": t.token, "ahead": t.ahead.String(), "ends": t.ends.Format(time.RFC3339Nano)}
	if t.index != "" {
		fields["index"] = t.index
	}
	return broker.NewSecret(fields)
}

func readLeaseToken(s broker.Secret) (leaseToken, error) {
	fields := s.Reveal()
	ahead, err := time.ParseDuration(fields["ahead"])
	if err != nil {
		return leaseToken{}, errors.New("the token of the lease lacks Vault's clock")
	}
	ends, err := time.Parse(time.RFC3339Nano, fields["ends"])
	if err != nil {
		return leaseToken{}, errors.New("the token of the lease lacks its expiry")
	}
	return leaseToken{fields["token"], fields["index"], ahead, ends}, nil
}

// wholeSeconds returns the TTL to request for d.
func wholeSeconds(d time.Duration) time.Duration { return max(time.Second, d.Truncate(time.Second)) }

// ttlText returns a TTL as Vault reads it.
func ttlText(d time.Duration) string { return fmt.Sprintf("%ds", int64(wholeSeconds(d)/time.Second)) }

// Issue creates the credential with the token of the lease. It sends its request
// once: after a lost answer, a second attempt would create a second credential.
func (v *Issuer) Issue(ctx context.Context, o broker.Order) (broker.Credential, []byte, error) {
	spec := o.Entitlement.Spec.(*Spec)
	var h handle
	if err := json.Unmarshal(o.Lease.Handle, &h); err != nil {
		return broker.Credential{}, nil, fmt.Errorf("reading the handle: %w", err)
	}
	token, err := readLeaseToken(o.Key)
	if err != nil {
		return broker.Credential{}, nil, err
	}
	if spec.Path == TokenPath {
		h.Made = madeToken
		c, err := tokenCredential(&o.Lease, token)
		return c, h.encode(), v.named(err, o.Entitlement)
	}
	sent, err := spec.request(&o.Lease, spec.timeLeft(&o.Lease, token.ahead))
	var a *answer
	if err == nil {
		a, err = send(ctx, v.once, access{token.token, token.index, true}, sent)
	}
	if err != nil {
		// Only then is it certain that no credential exists.
		if unprocessed(err) || errors.Is(err, broker.ErrInvalidParameter) || errors.Is(err, broker.ErrInvalidTTL) {
			h.Made = madeNothing
		}
		return broker.Credential{}, h.encode(), fmt.Errorf("creating the credential: %w", err)
	}
	if a.tokenEnds = token.ends; a.LeaseID != "" {
		h.Made, h.Lease = madeLease, a.LeaseID
	}
	c, err := spec.credential(a, &o.Lease, sent, &h)
	return c, h.encode(), v.named(err, o.Entitlement)
}

// named adds to an error about the end of a credential what the operator has to look
// at.
func (v *Issuer) named(err error, e *broker.Entitlement) error {
	var early *endsEarly
	if errors.As(err, &early) {
		return fmt.Errorf("%w (entitlement %s, token role %s)", err, e.Name, v.cfg.TokenRole)
	}
	return err
}

// Revoke ends the credential that the lease's token created. It confirms only what
// Vault revokes by name: revoking a token merely queues the token's own leases.
func (v *Issuer) Revoke(ctx context.Context, l broker.Lease) error {
	var h handle
	if err := json.Unmarshal(l.Handle, &h); err != nil || h.At != v.at {
		return broker.ForeignLease(l)
	}
	if h.Made == madeLease || h.Made == madeExpiringLease {
		return v.revokeLease(ctx, h)
	}
	if err := v.revokeToken(ctx, h.Accessor); err != nil {
		return fmt.Errorf("revoking the token of a lease: %w", err)
	}
	switch h.Made {
	case madeToken, madeNothing:
		return nil
	case madeExpiring:
		if err := v.revokeCertificate(ctx, h, l.Expires); err != nil {
			return fmt.Errorf("revoking a certificate by its serial number: %w", err)
		}
		return broker.ErrNotRevocable
	}
	return broker.ErrQueued
}

// revokeLease revokes a lease of Vault, and waits until that is done. Sys().Revoke
// of the library does not wait, and RevokeWithOptions puts the lease into the
// path, which the documented policy of the broker does not allow.
func (v *Issuer) revokeLease(ctx context.Context, h handle) error {
	if err := v.write(ctx, "sys/leases/revoke", map[string]any{"lease_id": h.Lease, "sync": true}); err != nil {
		return fmt.Errorf("revoking a Vault lease: %w", err)
	}
	v.discard(ctx, h.Accessor)
	if h.Made == madeExpiringLease {
		return broker.ErrNotRevocable
	}
	return nil
}

// revokeCertificate puts an unexpired certificate on its authority's revocation
// list. That ends it only for verifiers that read the list, so a refusal is
// logged and not retried: the broker's policy may not allow it, and a role may
// not store its certificates (no_store).
func (v *Issuer) revokeCertificate(ctx context.Context, h handle, until time.Time) error {
	if h.Serial == "" || !time.Now().Before(until) {
		return nil
	}
	err := v.write(ctx, h.Mount+"/revoke", map[string]any{"serial_number": h.Serial})
	if !errors.Is(err, broker.ErrIssuerRefused) {
		return err
	}
	if _, logged := v.unlisted.LoadOrStore(h.Mount, true); !logged {
		v.cfg.Log.WarnContext(ctx, "certificates that end early are not listed as revoked", "issuer", v.cfg.Name, "mount", h.Mount, "err", err)
	}
	return nil
}

// revokeToken revokes a token, which queues its leases for revocation. A token
// that is gone already is no error. The library's RevokeAccessor ignores the body
// of an answer, so it would accept what write refuses.
func (v *Issuer) revokeToken(ctx context.Context, accessor string) error {
	err := v.write(ctx, "auth/token/revoke-accessor", map[string]any{"accessor": accessor})
	if err != nil && (strings.Contains(err.Error(), "invalid accessor") || strings.Contains(err.Error(), "token not found")) {
		return nil
	}
	return err
}

// discard revokes a token that is no longer needed. If that fails, the token
// expires with its lease.
func (v *Issuer) discard(ctx context.Context, accessor string) {
	if err := v.revokeToken(ctx, accessor); err != nil {
		v.cfg.Log.WarnContext(ctx, "an unused lease token was not revoked, and stays until it expires", "issuer", v.cfg.Name, "err", err)
	}
}

// Owns reports whether this issuer can end the lease. A lease without a handle
// ends only at its expiry, under any issuer.
func (v *Issuer) Owns(l broker.Lease) bool {
	var h handle
	return len(l.Handle) == 0 || json.Unmarshal(l.Handle, &h) == nil && h.At == v.at
}
