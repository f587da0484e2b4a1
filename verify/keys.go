package verify

import (
	"context"
	"crypto"
	"errors"
	"strings"
	"sync"
	"time"
)

// How long the keys and the metadata are kept without a fetch.
const (
	leastKept = time.Minute
	usualKept = 5 * time.Minute
	mostKept  = time.Hour
	maxKeys   = 64
)

// keys are the issuer's keys.
//
//   - They are fetched when the first token needs them, and again when their max-age has
//     passed. Tokens do not wait for the latter: the old keys stay in use.
//   - A token with an unknown key causes a fetch, but not within MinRefresh of the last one,
//     so that bad tokens can't make the service call the issuer for each of them.
//   - While the issuer is down, the old keys stay in use for MaxStale.
type keys struct {
	v *Verifier
	r refresher

	mu      sync.Mutex
	set     map[string]crypto.PublicKey // by kid; never changed
	from    metadata
	fetched time.Time
	fresh   time.Time // until then
	err     error     // of the last fetch
}

// metadata are the parts of the issuer's metadata that matter (RFC 8414, section 2).
type metadata struct {
	keys, introspection string
	until               time.Time
}

// find returns the key with an id.
func (k *keys) find(ctx context.Context, kid string) (crypto.PublicKey, error) {
	if kid == "" {
		return nil, invalid("it does not name its key")
	}
	now := k.v.cfg.Now()
	key, _, fresh := k.known(kid, now)
	if key != nil && fresh {
		return key, nil
	}
	done := k.r.start(now, k.pause(), k.fetch)
	if key != nil {
		return key, nil // the fetch goes on
	}
	if err := wait(ctx, done); err != nil {
		return nil, unavailable("waiting for the keys", err)
	}
	key, usable, _ := k.known(kid, now)
	if key != nil {
		return key, nil
	}
	if !usable {
		k.mu.Lock()
		defer k.mu.Unlock()
		return nil, unavailable("fetching the keys", k.err)
	}
	return nil, invalid("its key is not one of the issuer's")
}

// retryAfter is the pause after a fetch while there are no usable keys.
const retryAfter = time.Second

func (k *keys) pause() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.set == nil {
		return min(retryAfter, k.v.cfg.MinRefresh)
	}
	return k.v.cfg.MinRefresh
}

// known returns a known key, and whether the keys are usable and fresh.
func (k *keys) known(kid string, now time.Time) (key crypto.PublicKey, usable, fresh bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.set != nil && !now.Before(k.fresh.Add(k.v.cfg.MaxStale)) {
		k.set = nil
	}
	return k.set[kid], k.set != nil, now.Before(k.fresh)
}

func (k *keys) fetch(ctx context.Context) {
	now := k.v.cfg.Now()
	set, kept, err := k.read(ctx, now)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err = err; err == nil {
		k.set, k.fetched, k.fresh = set, now, now.Add(kept)
	}
}

func (k *keys) read(ctx context.Context, now time.Time) (set map[string]crypto.PublicKey, kept time.Duration, err error) {
	address := k.v.cfg.JWKS
	if address == "" {
		m, err := k.metadata(ctx, now)
		if err != nil {
			return nil, 0, err
		}
		address = m.keys
	}
	resp, err := k.v.get(ctx, address, nil, maxDocument)
	if err != nil {
		return nil, 0, err
	}
	if resp.status != 200 || !resp.hasType("application/jwk-set+json", "application/json") {
		return nil, 0, errors.New("the answer is not a JWK Set")
	}
	if set, err = parseKeys(resp.body); err != nil {
		return nil, 0, err
	}
	return set, resp.maxAge(leastKept, usualKept, mostKept), nil
}

// metadata returns the issuer's metadata, and fetches them if they are old.
func (k *keys) metadata(ctx context.Context, now time.Time) (metadata, error) {
	k.mu.Lock()
	known := k.from
	k.mu.Unlock()
	if now.Before(known.until) {
		return known, nil
	}
	resp, err := k.v.get(ctx, k.v.wellKnown(), nil, maxDocument)
	if err != nil {
		return metadata{}, err
	}
	fresh, err := k.v.parseMetadata(resp)
	if err != nil {
		return metadata{}, err
	}
	fresh.until = now.Add(resp.maxAge(leastKept, usualKept, mostKept))
	k.mu.Lock()
	defer k.mu.Unlock()
	k.from = fresh
	return fresh, nil
}

// wellKnown returns the URL of the metadata (RFC 8414, section 3.1).
func (v *Verifier) wellKnown() string {
	u := *v.issuer
	u.Path = "/.well-known/oauth-authorization-server" + strings.TrimSuffix(u.Path, "/")
	return u.String()
}

func (v *Verifier) parseMetadata(resp *response) (metadata, error) {
	if resp.status != 200 || !resp.hasType("application/json") {
		return metadata{}, errors.New("the answer is not metadata")
	}
	document, err := parseObject(resp.body)
	if err != nil {
		return metadata{}, errors.New("the metadata are not strict JSON")
	}
	if document.textOf("issuer") != v.cfg.Issuer { // section 3.3
		return metadata{}, errors.New("the metadata are of another issuer")
	}
	m := metadata{keys: document.textOf("jwks_uri"), introspection: document.textOf("introspection_endpoint")}
	if !v.trusts(m.keys) || m.introspection != "" && !v.trusts(m.introspection) {
		return metadata{}, errors.New("an endpoint in the metadata is not https")
	}
	return m, nil
}

// parseKeys reads a JWK Set. It skips keys that it can't use (RFC 7517, section 5). A key
// whose id another one has is not used.
func parseKeys(text []byte) (map[string]crypto.PublicKey, error) {
	document, err := parseObject(text)
	if err != nil {
		return nil, errors.New("the keys are not strict JSON")
	}
	list, ok := document.get("keys")
	if !ok || list.kind != '[' || len(list.list) > maxKeys {
		return nil, errors.New("the answer is not a JWK Set, or has too many keys")
	}
	set, repeated := map[string]crypto.PublicKey{}, map[string]bool{}
	for i := range list.list {
		jwk := &list.list[i]
		kid := jwk.textOf("kid")
		key, err := publicKey(jwk)
		if kid == "" || err != nil || !forSignatures(jwk) {
			continue
		}
		if alg, ok := jwk.get("alg"); ok && alg.text != algorithmOf(key) {
			continue
		}
		if set[kid] != nil {
			repeated[kid] = true
		}
		set[kid] = key
	}
	for kid := range repeated {
		delete(set, kid)
	}
	if len(set) == 0 {
		return nil, errors.New("the JWK Set has no key that can be used")
	}
	return set, nil
}

// forSignatures reports whether use and key_ops, if present, allow to verify signatures.
func forSignatures(jwk *value) bool {
	if use, ok := jwk.get("use"); ok && use.text != "sig" {
		return false
	}
	ops, ok := jwk.get("key_ops")
	if !ok {
		return true
	}
	for _, op := range ops.list {
		if op.text == "verify" {
			return true
		}
	}
	return false
}
