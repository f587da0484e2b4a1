package vault

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"

	"accessbroker.internal/broker"
)

// Config is how the broker reaches a Vault, or an OpenBao.
type Config struct {
	Name      string // of the issuer, for errors and log lines
	Address   string // https://vault.acme.test:8200
	Namespace string
	TLS       *tls.Config // nil: the system's roots, no client certificate
	Login     Login
	TokenRole string // auth/token/roles/…, by which the tokens of leases are made
	Log       *slog.Logger
}

// Issuer has a Vault make credentials. Each is made by a token of its own, an
// orphan with the entitlement's policies that ends with the lease: its accessor
// is recorded before the token is used, and is enough to end everything that
// was made by it. It is safe for concurrent use.
type Issuer struct {
	cfg     Config
	at      string      // which Vault it is, in handles
	once    *api.Client // sends what may happen only once
	retries *api.Client // sends again what does no harm twice
	session *vaultSession

	unlisted sync.Map // mounts that were found not to revoke by serial number, to say so once
}

var _ broker.Issuer = (*Issuer)(nil)

const (
	maxVaultAnswer = 1 << 20         // bytes
	renewEvery     = time.Second     // is looked whether to; what is due at two thirds of 10 s is renewed in time
	renewPause     = 5 * time.Second // after a renewal that failed
)

// New makes the issuer. It says nothing to the Vault yet, and starts
// nothing: call Run, which keeps the broker's own token alive.
func New(cfg Config) (*Issuer, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	where := sha256.Sum256([]byte(strings.TrimSuffix(cfg.Address, "/") + "\n" + cfg.Namespace))
	v := &Issuer{cfg: cfg, at: hex.EncodeToString(where[:8])}
	transport := &http.Transport{
		TLSClientConfig: cfg.TLS, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 32,
		IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 5 * time.Second,
	}
	var err error
	if v.once, err = newVaultClient(cfg, sentOnce{bounded{transport}}, 0); err != nil {
		return nil, err
	}
	if v.retries, err = newVaultClient(cfg, bounded{transport}, 2); err != nil {
		return nil, err
	}
	again := func(ctx context.Context, token, method, path string, body any) (*vaultAnswer, error) {
		return v.call(ctx, v.retries, vaultCall{token: token, method: method, path: path, body: body})
	}
	v.session = &vaultSession{login: cfg.Login, call: again, log: cfg.Log, name: cfg.Name}
	return v, nil
}

// newVaultClient makes a client that is told everything: what the library
// reads of the environment (VAULT_TOKEN, VAULT_NAMESPACE, VAULT_HEADERS) is for
// people's terminals.
func newVaultClient(cfg Config, transport http.RoundTripper, retries int) (*api.Client, error) {
	c, err := api.NewClient(&api.Config{
		Address: cfg.Address, HttpClient: &http.Client{Transport: transport}, MaxRetries: retries,
		MinRetryWait: 100 * time.Millisecond, MaxRetryWait: time.Second, Timeout: broker.IssueDeadline,
	})
	if err != nil {
		return nil, fmt.Errorf("preparing for the Vault at %s: %w", cfg.Address, err)
	}
	c.ClearToken()
	c.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	if cfg.Namespace != "" {
		c.SetNamespace(cfg.Namespace)
	}
	return c, nil
}

// bounded keeps answers to a size.
type bounded struct{ http.RoundTripper }

func (t bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxVaultAnswer), resp.Body}
	}
	return resp, err
}

// sentOnce keeps calls from being sent again. By itself, a transport repeats a
// GET if the connection that it had kept breaks (net/http, Transport), and a
// Vault may have made a credential by then. It never repeats a call whose body
// it can't read again, and an empty one leaves the call as it was.
type sentOnce struct{ http.RoundTripper }

func (t sentOnce) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil || r.Body == http.NoBody {
		r = r.Clone(r.Context())
		r.Body, r.GetBody = io.NopCloser(strings.NewReader("")), nil
	}
	return t.RoundTripper.RoundTrip(r)
}

// Run keeps the broker's token alive until ctx ends.
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
			v.cfg.Log.WarnContext(ctx, "renewing the broker's own token", "issuer", v.cfg.Name, "err", err)
			wait = renewPause
		}
		next.Reset(wait)
	}
}

type vaultCall struct {
	token, method, path string
	body                any
	data                map[string]any // the body of a call that makes a credential
	wrap                time.Duration
	late                time.Duration // by how much what is made may outlive its lease
}

// A vaultAnswer is what a Vault said, and by how much its clock is ahead of
// ours, to the second.
type vaultAnswer struct {
	*api.Secret
	ahead time.Duration
}

// leaseEnd is when the lease of what was made ends.
func (a *vaultAnswer) leaseEnd() time.Time {
	return time.Now().Add(time.Duration(a.LeaseDuration) * time.Second)
}

// after is the time, by the clocks of everybody else, that is d from now by the
// Vault's, to the second.
func (a *vaultAnswer) after(d time.Duration) time.Time {
	return time.Now().Add(a.ahead + time.Second + d)
}

func (v *Issuer) call(ctx context.Context, client *api.Client, c vaultCall) (*vaultAnswer, error) {
	r := client.NewRequest(c.method, "/v1/"+c.path)
	r.ClientToken = c.token
	if c.wrap > 0 {
		r.WrapTTL = fmt.Sprintf("%ds", int64(c.wrap/time.Second))
	}
	if c.body != nil {
		if err := r.SetJSONBody(c.body); err != nil {
			return nil, fmt.Errorf("encoding a call: %w", err)
		}
	}
	//lint:ignore SA1019 the token differs from call to call, and Logical takes it from the client only
	resp, err := client.RawRequestWithContext(ctx, r)
	if resp != nil {
		defer func() { _ = resp.Body.Close() }()
	}
	if err != nil {
		return nil, vaultError(err)
	}
	answer := &vaultAnswer{Secret: &api.Secret{}}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		answer.ahead = time.Until(date)
	}
	if resp.StatusCode == http.StatusNoContent {
		return answer, nil
	}
	if answer.Secret, err = api.ParseSecret(resp.Body); err != nil || answer.Secret == nil {
		return nil, fmt.Errorf("%w: the answer can't be read", broker.ErrIssuerUnavailable)
	}
	return answer, nil
}

// own makes a call with the broker's own token, which may just have ended.
func (v *Issuer) own(ctx context.Context, method, path string, body any) (*vaultAnswer, error) {
	token, err := v.session.get(ctx)
	if err != nil {
		return nil, err
	}
	answer, err := v.call(ctx, v.retries, vaultCall{token: token, method: method, path: path, body: body})
	if status(err) == http.StatusForbidden {
		if token, other := v.session.refused(ctx, token); other {
			return v.call(ctx, v.retries, vaultCall{token: token, method: method, path: path, body: body})
		}
	}
	return answer, err
}

// vaultFault is an error of a Vault, without its words: those may repeat what
// was sent, and come from plugins that speak to yet other systems.
type vaultFault struct {
	kind   error // ErrIssuerRefused or ErrIssuerUnavailable
	status int   // HTTP; 0: no answer
	what   string
}

func (e *vaultFault) Error() string { return fmt.Sprintf("%v: %s", e.kind, e.what) }
func (e *vaultFault) Unwrap() error { return e.kind }

func status(err error) int {
	var f *vaultFault
	if errors.As(err, &f) {
		return f.status
	}
	return 0
}

// unclassified gives an error without what it is to a caller.
func unclassified(err error) error {
	var f *vaultFault
	if errors.As(err, &f) {
		return errors.New(f.what)
	}
	return err
}

func vaultError(err error) error {
	var answer *api.ResponseError
	var network *url.Error
	switch {
	case errors.As(err, &answer):
		return &vaultFault{faultKind(answer.StatusCode), answer.StatusCode, fmt.Sprintf("the Vault answered %d, %s", answer.StatusCode, known(answer))}
	case errors.Is(err, context.DeadlineExceeded):
		return &vaultFault{broker.ErrIssuerUnavailable, 0, "the Vault did not answer in time"}
	case errors.As(err, &network):
		return &vaultFault{broker.ErrIssuerUnavailable, 0, "the Vault can't be reached: " + network.Err.Error()}
	}
	return &vaultFault{broker.ErrIssuerUnavailable, 0, "the call to the Vault did not go through: " + err.Error()}
}

// faultKind tells a Vault that says no from one that can't say anything: 429
// is a quota, 472 and 473 are standbys, and 5xx is sealed, or worse.
func faultKind(status int) error {
	if status == http.StatusTooManyRequests || status == 472 || status == 473 || status >= 500 {
		return broker.ErrIssuerUnavailable
	}
	return broker.ErrIssuerRefused
}

// known gives what may be said of a Vault's words: which of its own, fixed
// sentences they are.
func known(e *api.ResponseError) string {
	said := strings.Join(e.Errors, "; ")
	for _, sentence := range []string{
		"permission denied", "invalid token", "invalid accessor", "no handler for route", "unsupported path", "unsupported operation",
		"Vault is sealed", "unknown role", "missing client token", "token not found", "lease not found", "service unavailable",
	} {
		if strings.Contains(said, sentence) {
			return sentence
		}
	}
	return http.StatusText(e.StatusCode)
}

// A vaultHandle is what ends a credential. It holds no secret.
type vaultHandle struct {
	Accessor string   `json:"accessor"`
	Made     vaultEnd `json:"made"`
	Lease    string   `json:"lease,omitempty"`
	Mount    string   `json:"mount,omitempty"`  // of the PKI engine
	Serial   string   `json:"serial,omitempty"` // of the certificate, there
	At       string   `json:"at"`               // of the Vault
}

// A vaultEnd says what can be known of what the lease's token made.
type vaultEnd string

const (
	endUnknown  vaultEnd = "unknown"  // it may have made something
	endNothing  vaultEnd = "nothing"  // it did not
	endToken    vaultEnd = "token"    // the token is the credential
	endLease    vaultEnd = "lease"    // a lease, which is named
	endByItself vaultEnd = "other"    // something that only time ends
	endTimed    vaultEnd = "timed"    // the same, and a lease, which is named
	endWrapped  vaultEnd = "wrapping" // something that only its holder has seen
)

func (h vaultHandle) encode() []byte {
	b, _ := json.Marshal(h) // a struct of strings always marshals
	return b
}

// Prepare makes the token of the lease.
func (v *Issuer) Prepare(ctx context.Context, o broker.Order) (broker.Prepared, error) {
	spec, ok := o.Entitlement.Spec.(*Spec)
	if !ok {
		return broker.Prepared{}, fmt.Errorf("entitlement %s has no spec of a Vault", o.Entitlement.Name)
	}
	l := &o.Lease
	left := wholeSeconds(time.Until(l.Expires))
	answer, err := v.own(ctx, http.MethodPost, "auth/token/create/"+v.cfg.TokenRole, map[string]any{
		"policies": spec.policies(l), "no_default_policy": true, "type": "service", "renewable": false,
		"ttl": left, "explicit_max_ttl": left, "display_name": l.ID.String(),
		"meta": map[string]string{"lease": l.ID.String(), "request": l.Request.String(), "entitlement": l.Entitlement, "holder": l.Holder},
	})
	if err != nil {
		return broker.Prepared{}, fmt.Errorf("making the token of a lease: %w", err)
	}
	if answer.Auth == nil || answer.Auth.ClientToken == "" || answer.Auth.Accessor == "" {
		return broker.Prepared{}, fmt.Errorf("%w: the token role %q makes no service tokens", broker.ErrIssuerRefused, v.cfg.TokenRole)
	}
	if !answer.Auth.Orphan {
		// It would end with the broker's own token, and everything with it.
		v.forget(ctx, answer.Auth.Accessor)
		return broker.Prepared{}, fmt.Errorf("%w: the token role %q must say orphan=true", broker.ErrIssuerRefused, v.cfg.TokenRole)
	}
	return broker.Prepared{
		Handle: vaultHandle{Accessor: answer.Auth.Accessor, Made: endUnknown, At: v.at}.encode(),
		Key:    broker.NewSecret(map[string]string{"token": answer.Auth.ClientToken, "ahead": answer.ahead.String()}),
	}, nil
}

func wholeSeconds(d time.Duration) string { return fmt.Sprintf("%ds", max(1, int64(d/time.Second))) }

// Issue has the lease's token make the credential. It is sent once: what a
// second try made would have no name.
func (v *Issuer) Issue(ctx context.Context, o broker.Order) (broker.Credential, []byte, error) {
	spec, key := o.Entitlement.Spec.(*Spec), o.Key.Reveal()
	var handle vaultHandle
	if err := json.Unmarshal(o.Lease.Handle, &handle); err != nil {
		return broker.Credential{}, nil, fmt.Errorf("reading the handle: %w", err)
	}
	if spec.Path == TokenPath {
		handle.Made = endToken
		return vaultToken(&o.Lease, key["token"]), handle.encode(), nil
	}
	left := time.Until(o.Lease.Expires)
	if ahead, err := time.ParseDuration(key["ahead"]); err == nil && ahead > time.Second && spec.asksTime() && !spec.sessions() {
		left -= ahead // what it signs for a time, it counts by its own clock; sessions are counted by AWS's
	}
	sent, err := spec.call(&o.Lease, left)
	var answer *vaultAnswer
	if err == nil {
		sent.token = key["token"]
		answer, err = v.call(ctx, v.once, sent)
	}
	if err != nil {
		if errors.Is(err, broker.ErrIssuerRefused) || errors.Is(err, broker.ErrInvalidParameter) || errors.Is(err, broker.ErrInvalidTTL) {
			handle.Made = endNothing
		}
		return broker.Credential{}, handle.encode(), fmt.Errorf("making the credential: %w", err)
	}
	if answer.LeaseID != "" {
		handle.Made, handle.Lease = endLease, answer.LeaseID
	}
	c, err := spec.credential(answer, &o.Lease, sent, &handle)
	return c, handle.encode(), err
}

// Revoke ends what the lease's token made. It is confirmed only if the Vault
// names what it ended: the accessor of a token merely queues its leases.
func (v *Issuer) Revoke(ctx context.Context, l broker.Lease) error {
	var h vaultHandle
	if err := json.Unmarshal(l.Handle, &h); err != nil || h.At != v.at {
		return broker.ForeignLease(l)
	}
	if h.Made == endLease || h.Made == endTimed {
		body := map[string]any{"lease_id": h.Lease, "sync": true}
		if _, err := v.own(ctx, http.MethodPost, "sys/leases/revoke", body); err != nil {
			return fmt.Errorf("revoking a Vault lease: %w", err)
		}
		v.forget(ctx, h.Accessor) // the lease is gone; its token can do no more than that, and ends with its time
		if h.Made == endTimed {
			return broker.ErrNotRevocable
		}
		return nil
	}
	if err := v.end(ctx, h.Accessor); err != nil {
		return fmt.Errorf("revoking the token of a lease: %w", err)
	}
	switch h.Made {
	case endToken, endNothing:
		return nil
	case endByItself:
		if err := v.list(ctx, h, l.Expires); err != nil {
			return fmt.Errorf("revoking a certificate by its serial number: %w", err)
		}
		return broker.ErrNotRevocable
	}
	return broker.ErrQueued
}

// list has an authority list a certificate as revoked, as long as it lives. That
// ends it only for those who look there, so it is worth trying again while the
// Vault is away, and not if it won't: the broker's policy may not allow it, and
// a role may not keep what it made (no_store).
func (v *Issuer) list(ctx context.Context, h vaultHandle, until time.Time) error {
	if h.Serial == "" || !time.Now().Before(until) {
		return nil
	}
	_, err := v.own(ctx, http.MethodPost, h.Mount+"/revoke", map[string]string{"serial_number": h.Serial})
	if !errors.Is(err, broker.ErrIssuerRefused) {
		return err
	}
	if _, told := v.unlisted.LoadOrStore(h.Mount, true); !told {
		v.cfg.Log.WarnContext(ctx, "certificates that end early are not listed as revoked", "issuer", v.cfg.Name, "mount", h.Mount, "err", err)
	}
	return nil
}

// end ends a token, and queues the end of its leases. That it is gone already
// is no error.
func (v *Issuer) end(ctx context.Context, accessor string) error {
	_, err := v.own(ctx, http.MethodPost, "auth/token/revoke-accessor", map[string]string{"accessor": accessor})
	if err != nil && (strings.Contains(err.Error(), "invalid accessor") || strings.Contains(err.Error(), "token not found")) {
		return nil
	}
	return err
}

// forget ends a token that is of no use to anybody any more.
func (v *Issuer) forget(ctx context.Context, accessor string) {
	if err := v.end(ctx, accessor); err != nil {
		v.cfg.Log.WarnContext(ctx, "a token that is of no use any more lives on until its time is over", "issuer", v.cfg.Name, "err", err)
	}
}

// Owns reports whether this issuer can end the lease. A lease without a handle
// ends only at its expiry, under any issuer.
func (v *Issuer) Owns(l broker.Lease) bool {
	var h vaultHandle
	return len(l.Handle) == 0 || json.Unmarshal(l.Handle, &h) == nil && h.At == v.at
}
