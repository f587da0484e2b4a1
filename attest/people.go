package attest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/strictjson"
)

// People authenticates people with OpenID providers. It uses the authorization
// code flow (OpenID Connect Core 1.0, section 3.1) with PKCE (RFC 7636) and a
// nonce. It is safe for concurrent use.
type People struct {
	providers map[string]*provider
	subjects  *cache[*subjectToken] // access tokens
}

// NewPeople returns People with these providers. It does not contact them.
func NewPeople(configs ...ProviderConfig) (*People, error) {
	p := &People{providers: map[string]*provider{}, subjects: newCache[*subjectToken](cachedSubjects)}
	for _, cfg := range configs {
		op, err := newProvider(cfg)
		if err != nil {
			return nil, err
		}
		p.providers[cfg.Name] = op
	}
	return p, nil
}

func (p *People) provider(name string) (*provider, error) {
	if op := p.providers[name]; op != nil {
		return op, nil
	}
	return nil, &broker.Refusal{Err: broker.ErrNotFound, Detail: "the login provider does not exist"}
}

// A login is the state of a login while the browser is at the provider.
type login struct {
	Provider string    `json:"provider"`
	State    string    `json:"state"`
	Nonce    string    `json:"nonce"`
	Verifier string    `json:"verifier"` // of PKCE
	Fresh    bool      `json:"fresh,omitempty"`
	Begun    time.Time `json:"begun"`
}

// loginTimeout is how long a login may take.
const loginTimeout = 10 * time.Minute

// Begin starts a login. The caller sends the browser to authURL and passes state,
// which is secret, to Finish. With fresh, the provider must authenticate the person
// again even if it has a session.
func (p *People) Begin(ctx context.Context, name string, fresh bool, now time.Time) (state []byte, authURL string, err error) {
	op, err := p.provider(name)
	if err != nil {
		return nil, "", err
	}
	d, err := op.discover(ctx, now)
	if err != nil {
		return nil, "", err
	}
	config, err := op.oauth(d)
	if err != nil {
		return nil, "", err
	}
	l := login{Provider: name, State: rand.Text(), Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier(), Fresh: fresh, Begun: now}
	options := []oauth2.AuthCodeOption{oidc.Nonce(l.Nonce), oauth2.S256ChallengeOption(l.Verifier)}
	if fresh {
		options = append(options, oauth2.SetAuthURLParam("prompt", "login"), oauth2.SetAuthURLParam("max_age", "0"))
	}
	state, err = json.Marshal(l)
	return state, config.AuthCodeURL(l.State, options...), err
}

// Finish completes a login with the parameters of the callback and returns the
// person's identity and tokens. Its errors contain no token, code or secret.
func (p *People) Finish(ctx context.Context, state []byte, callback url.Values, now time.Time) (broker.NewSession, error) {
	var l login
	if err := json.Unmarshal(state, &l); err != nil {
		return broker.NewSession{}, fmt.Errorf("reading a login's state: %w", err)
	}
	op, err := p.provider(l.Provider)
	if err != nil {
		return broker.NewSession{}, err
	}
	d, err := op.discover(ctx, now)
	if err != nil {
		return broker.NewSession{}, err
	}
	if err := op.checkCallback(d, &l, callback, now); err != nil {
		return broker.NewSession{}, fmt.Errorf("provider %s: %w", l.Provider, err)
	}
	ctx, cancel := op.context(ctx)
	defer cancel()
	config, err := op.oauth(d)
	if err != nil {
		return broker.NewSession{}, err
	}
	token, err := config.Exchange(ctx, callback.Get("code"), oauth2.VerifierOption(l.Verifier))
	if err != nil {
		return broker.NewSession{}, op.unavailable("exchanging the code for tokens", err)
	}
	in, err := op.newSession(ctx, d, &l, token, now)
	if err != nil {
		return broker.NewSession{}, fmt.Errorf("provider %s: %w", l.Provider, err)
	}
	return in, nil
}

// checkCallback checks the parameters of the callback before the code is sent to
// the provider: the browser may carry another login's response or another
// provider's (the mix-up attack of RFC 9207).
func (p *provider) checkCallback(d *discovered, l *login, callback url.Values, now time.Time) error {
	for _, name := range []string{"state", "code", "iss", "error"} {
		if len(callback[name]) > 1 || len(callback.Get(name)) > 4096 {
			return fmt.Errorf("the parameter %s of the response is repeated or too long", name)
		}
	}
	issuer, hasIssuer := callback.Get("iss"), callback.Has("iss")
	switch {
	case now.Before(l.Begun) || now.Sub(l.Begun) > loginTimeout:
		return errors.New("the login took longer than 10 minutes: log in again")
	case subtle.ConstantTimeCompare([]byte(callback.Get("state")), []byte(l.State)) != 1:
		return errors.New("the response belongs to another login (state): log in again") // RFC 6749, section 10.12
	case hasIssuer && issuer != p.cfg.Issuer || d.issuerInResponse && !hasIssuer:
		return errors.New("the response comes from another provider (iss)") // RFC 9207, section 2.4
	case callback.Has("error"):
		return withoutSecrets(&oauth2.RetrieveError{ErrorCode: callback.Get("error")})
	case callback.Get("code") == "":
		return errors.New("the response has no code")
	}
	return nil
}

// newSession checks the token response of a login and returns the session to open.
func (p *provider) newSession(ctx context.Context, d *discovered, l *login, token *oauth2.Token, now time.Time) (broker.NewSession, error) {
	raw, id, c, err := p.idToken(ctx, d, token, now)
	if err != nil {
		return broker.NewSession{}, err
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(l.Nonce)) != 1 {
		return broker.NewSession{}, errors.New("the ID token belongs to another login (nonce)")
	}
	authTime, err := c.seconds("auth_time")
	switch {
	case err != nil:
		return broker.NewSession{}, err
	case l.Fresh && authTime.Before(l.Begun.Add(-iatLeeway)):
		return broker.NewSession{}, errors.New("the provider did not authenticate the person again (auth_time)") // Core, section 3.1.2.1
	case authTime.After(now.Add(iatLeeway)):
		return broker.NewSession{}, errors.New("the login happened in the future (auth_time): compare the clocks of the provider and the broker")
	}
	who, tokens, err := p.identity(ctx, d, id, c, token, now)
	if err != nil {
		return broker.NewSession{}, err
	}
	who.Person.Login = authTime
	who.Proof = broker.Proof{Method: broker.MethodSession, SHA256: sha256.Sum256([]byte(raw)), Expires: id.Expiry.UTC()}
	sid, err := c.text("sid")
	if err != nil || len(sid) > maxSessions {
		return broker.NewSession{}, errors.New("the claim \"sid\" is not a string of at most 255 bytes")
	}
	return broker.NewSession{Who: who, SID: sid, Tokens: tokens}, nil
}

// idToken verifies the ID token of a token response (OpenID Connect Core, section
// 3.1.3.7) and returns it with its claims.
func (p *provider) idToken(ctx context.Context, d *discovered, token *oauth2.Token, now time.Time) (string, *oidc.IDToken, personClaims, error) {
	raw, _ := token.Extra("id_token").(string)
	if raw == "" || len(raw) > maxIDToken {
		return "", nil, personClaims{}, errors.New("the token response has no ID token, or one that is too long")
	}
	id, err := p.verifier(d, now).Verify(ctx, raw)
	if err != nil {
		return "", nil, personClaims{}, fmt.Errorf("verifying the ID token: %w", err)
	}
	var payload json.RawMessage
	if err := id.Claims(&payload); err != nil {
		return "", nil, personClaims{}, err
	}
	c, err := parseClaims(payload)
	if err != nil {
		return "", nil, personClaims{}, err
	}
	azp, err := c.text("azp")
	switch {
	case err != nil:
		return "", nil, personClaims{}, err
	case azp != "" && azp != p.cfg.ClientID || azp == "" && len(id.Audience) > 1:
		return "", nil, personClaims{}, errors.New("the ID token was issued to another client (azp)")
	case !now.Before(id.Expiry):
		return "", nil, personClaims{}, errors.New("the ID token has expired")
	case id.IssuedAt.After(now.Add(iatLeeway)):
		return "", nil, personClaims{}, errors.New("the ID token was issued in the future (iat): compare the clocks of the provider and the broker")
	case id.AccessTokenHash != "" && id.VerifyAccessToken(token.AccessToken) != nil:
		return "", nil, personClaims{}, errors.New("the ID token belongs to another access token (at_hash)")
	}
	return raw, id, c, nil
}

// providerTokens are the tokens that a session stores, sealed, for Refresh.
type providerTokens struct {
	Access  string    `json:"access,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	Refresh string    `json:"refresh,omitempty"`
}

// identity returns the identity that the claims c describe, and the tokens for
// Refresh. It reads UserInfo (OpenID Connect Core, section 5.3) if the ID token
// lacks the groups or the name. Without groups a UserInfo error is fatal; a missing
// name is not.
func (p *provider) identity(ctx context.Context, d *discovered, id *oidc.IDToken, c personClaims, token *oauth2.Token, now time.Time) (broker.Identity, []byte, error) {
	groups, present, err := c.groups(p.cfg.GroupsClaim)
	if err != nil {
		return broker.Identity{}, nil, err
	}
	if !present || len(c.raw["name"]) == 0 {
		more, err := p.userInfo(ctx, d, id.Subject, token)
		switch {
		case err != nil && !present:
			return broker.Identity{}, nil, err
		case err == nil && !present:
			if groups, _, err = more.groups(p.cfg.GroupsClaim); err != nil {
				return broker.Identity{}, nil, err
			}
		}
		if c.raw["email"] == nil { // its verification belongs to the same address
			delete(c.raw, "email_verified")
			if verified := more.raw["email_verified"]; verified != nil && more.raw["email"] != nil {
				c.raw["email_verified"] = verified
			}
		}
		for _, name := range []string{"name", "email", p.cfg.ManagerClaim, p.cfg.EndsClaim, p.cfg.SponsorClaim} {
			if value := more.raw[name]; value != nil && c.raw[name] == nil {
				c.raw[name] = value
			}
		}
	}
	person, err := p.person(id.Subject, c, slices.Clone(groups), now)
	if err != nil {
		return broker.Identity{}, nil, err
	}
	tokens, err := json.Marshal(providerTokens{token.AccessToken, token.Expiry, token.RefreshToken})
	return broker.Identity{ID: p.cfg.Name + "/" + id.Subject, Kind: broker.KindPerson, Person: person}, tokens, err
}

func (p *provider) userInfo(ctx context.Context, d *discovered, sub string, token *oauth2.Token) (personClaims, error) {
	c, err := p.readUserInfo(ctx, d, token)
	if err != nil {
		return personClaims{}, p.unavailable("reading UserInfo", err)
	}
	if got, err := c.text("sub"); err != nil || got != sub {
		return personClaims{}, errors.New("the UserInfo response belongs to another person (sub)") // Core, section 5.3.2
	}
	return c, nil
}

// readUserInfo reads UserInfo, which may be signed (OpenID Connect Core, section 5.3.2).
func (p *provider) readUserInfo(ctx context.Context, d *discovered, token *oauth2.Token) (personClaims, error) {
	if d.UserInfoEndpoint() == "" {
		return personClaims{}, errors.New("the provider has no UserInfo endpoint")
	}
	body, mediaType, err := p.get(ctx, d.UserInfoEndpoint(), token.SetAuthHeader)
	if err != nil {
		return personClaims{}, err
	}
	if mediaType != "application/jwt" {
		return parseClaims(body)
	}
	if body, err = p.keys.VerifySignature(ctx, string(body)); err != nil {
		return personClaims{}, err
	}
	c, err := parseClaims(body)
	if err != nil {
		return personClaims{}, err
	}
	issuer, err := c.text("iss")
	if err != nil || issuer != "" && issuer != p.cfg.Issuer || !c.isFor(p.cfg.ClientID) {
		return personClaims{}, errors.New("the signed UserInfo response is of another issuer or for another client")
	}
	return c, nil
}

// isFor reports whether the claims are for the client: aud is absent or contains it.
func (c personClaims) isFor(client string) bool {
	raw, ok := c.raw["aud"]
	if !ok {
		return true
	}
	list, ok := strictjson.Elements(raw)
	if !ok {
		list = []json.RawMessage{raw}
	}
	return slices.ContainsFunc(list, func(one json.RawMessage) bool { return text(one) == client })
}

// Refresh reads a person's claims from the provider again. It uses the refresh
// token if there is one, and the access token until it expires otherwise. sealed
// holds the tokens that Finish or Refresh returned last. The identity keeps its
// proof and login time.
func (p *People) Refresh(ctx context.Context, who broker.Identity, sealed []byte, now time.Time) (broker.Identity, []byte, error) {
	if who.Person == nil {
		return who, nil, errors.New("refreshing claims: the identity is not a person")
	}
	op, err := p.provider(who.Person.Provider)
	if err != nil {
		return who, nil, err
	}
	d, err := op.discover(ctx, now)
	if err != nil {
		return who, nil, err
	}
	var tokens providerTokens
	if err := json.Unmarshal(sealed, &tokens); err != nil {
		return who, nil, fmt.Errorf("reading the provider's tokens: %w", err)
	}
	ctx, cancel := op.context(ctx)
	defer cancel()
	fresh, sealed, err := op.refresh(ctx, d, who, tokens, now)
	if err != nil {
		return who, nil, fmt.Errorf("provider %s: %w", who.Person.Provider, err)
	}
	fresh.Proof, fresh.Person.Login = who.Proof, who.Person.Login
	return fresh, sealed, nil
}

func (p *provider) refresh(ctx context.Context, d *discovered, who broker.Identity, tokens providerTokens, now time.Time) (broker.Identity, []byte, error) {
	token := &oauth2.Token{AccessToken: tokens.Access, Expiry: tokens.Expires, TokenType: "Bearer"}
	sub := who.ID[len(p.cfg.Name)+1:]
	switch {
	case tokens.Refresh != "":
		config, err := p.oauth(d)
		if err != nil {
			return who, nil, err
		}
		renewed, err := config.TokenSource(ctx, &oauth2.Token{RefreshToken: tokens.Refresh}).Token()
		if err != nil {
			return who, nil, p.unavailable("refreshing the token", err)
		}
		if _, ok := renewed.Extra("id_token").(string); ok {
			_, id, c, err := p.idToken(ctx, d, renewed, now)
			if err == nil && id.Subject != sub {
				err = errors.New("the new ID token belongs to another person (sub)") // Core, section 12.2
			}
			if err != nil {
				return who, nil, err
			}
			return p.identity(ctx, d, id, c, renewed, now)
		}
		token = renewed
	case tokens.Access == "" || !now.Before(tokens.Expires):
		return who, nil, errors.New("the access token has expired, and there is no refresh token: configure the provider to issue refresh tokens")
	}
	c, err := p.userInfo(ctx, d, sub, token)
	if err != nil {
		return who, nil, err
	}
	return p.identity(ctx, d, &oidc.IDToken{Subject: sub}, c, token, now)
}

// LogoutToken verifies a logout token (OpenID Connect Back-Channel Logout 1.0,
// section 2.6). The caller must reject a token whose ID it has seen before.
func (p *People) LogoutToken(ctx context.Context, name, raw string, now time.Time) (broker.LogoutToken, error) {
	var word broker.LogoutToken
	op, err := p.provider(name)
	if err != nil {
		return word, err
	}
	if raw == "" || len(raw) > maxIDToken {
		return word, errors.New("the request has no logout token, or one that is too long")
	}
	d, err := op.discover(ctx, now)
	if err != nil {
		return word, err
	}
	ctx, cancel := op.context(ctx)
	defer cancel()
	token, err := op.verifier(d, now).VerifyLogout(ctx, raw)
	switch {
	case err != nil:
		return word, fmt.Errorf("provider %s: %w", name, err)
	case !now.Before(token.Expiry) || token.IssuedAt.After(now.Add(iatLeeway)) || now.Sub(token.IssuedAt) > broker.LogoutFor:
		return word, errors.New("the logout token has expired or was not issued recently")
	case len(token.SessionID) > maxSessions || token.Subject != "" && checkSubject(token.Subject) != nil:
		return word, errors.New("the logout token has a malformed sub or sid")
	}
	return broker.LogoutToken{Provider: name, Sub: token.Subject, SID: token.SessionID, ID: token.TokenID, Issued: token.IssuedAt}, nil
}
