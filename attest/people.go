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
)

// People are those who log in with OpenID providers: by the authorization code
// flow (OpenID Connect Core 1.0, section 3.1) with PKCE (RFC 7636) and a nonce.
// It is safe for concurrent use.
type People struct{ providers map[string]*provider }

// NewPeople makes People of the providers. None of them is asked for anything yet.
func NewPeople(configs ...ProviderConfig) (*People, error) {
	p := &People{providers: map[string]*provider{}}
	for _, cfg := range configs {
		one, err := newProvider(cfg)
		if err != nil {
			return nil, err
		}
		p.providers[cfg.Name] = one
	}
	return p, nil
}

func (p *People) provider(name string) (*provider, error) {
	if one := p.providers[name]; one != nil {
		return one, nil
	}
	return nil, &broker.Refusal{Err: broker.ErrNotFound, Detail: "there is no such provider"}
}

// A login is what is remembered while a browser is at its provider.
type login struct {
	Provider string    `json:"provider"`
	State    string    `json:"state"`
	Nonce    string    `json:"nonce"`
	Verifier string    `json:"verifier"` // of the PKCE challenge
	Fresh    bool      `json:"fresh,omitempty"`
	Begun    time.Time `json:"begun"`
}

// loginFor is how long a login may take.
const loginFor = 10 * time.Minute

// Begin begins a login. state is secret, and for Finish; the browser is sent
// to where. fresh has the provider ask for a proof of who sits there, although
// it may still know.
func (p *People) Begin(ctx context.Context, name string, fresh bool, now time.Time) (state []byte, where string, err error) {
	one, err := p.provider(name)
	if err != nil {
		return nil, "", err
	}
	d, err := one.discover(ctx, now)
	if err != nil {
		return nil, "", err
	}
	config, err := one.oauth(d)
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

// Finish proves who came back from the provider. What does not hold is an error
// that names no token, code or secret.
func (p *People) Finish(ctx context.Context, state []byte, callback url.Values, now time.Time) (broker.LoggedIn, error) {
	var l login
	if err := json.Unmarshal(state, &l); err != nil {
		return broker.LoggedIn{}, fmt.Errorf("reading a login's state: %w", err)
	}
	one, err := p.provider(l.Provider)
	if err != nil {
		return broker.LoggedIn{}, err
	}
	d, err := one.discover(ctx, now)
	if err != nil {
		return broker.LoggedIn{}, err
	}
	if err := one.checkCallback(d, &l, callback, now); err != nil {
		return broker.LoggedIn{}, fmt.Errorf("provider %s: %w", l.Provider, err)
	}
	ctx, cancel := one.context(ctx)
	defer cancel()
	config, err := one.oauth(d)
	if err != nil {
		return broker.LoggedIn{}, err
	}
	token, err := config.Exchange(ctx, callback.Get("code"), oauth2.VerifierOption(l.Verifier))
	if err != nil {
		return broker.LoggedIn{}, one.down("trading the code for tokens", err)
	}
	in, err := one.loggedIn(ctx, d, &l, token, now)
	if err != nil {
		return broker.LoggedIn{}, fmt.Errorf("provider %s: %w", l.Provider, err)
	}
	return in, nil
}

// checkCallback looks at what the browser brings before anything is sent to
// the provider.
func (p *provider) checkCallback(d *discovered, l *login, callback url.Values, now time.Time) error {
	for _, name := range []string{"state", "code", "iss", "error"} {
		if len(callback[name]) > 1 || len(callback.Get(name)) > 4096 {
			return fmt.Errorf("the answer has %s twice, or too long", name)
		}
	}
	issuer, said := callback.Get("iss"), callback.Has("iss")
	switch {
	case now.Before(l.Begun) || now.Sub(l.Begun) > loginFor:
		return errors.New("the login took too long")
	case subtle.ConstantTimeCompare([]byte(callback.Get("state")), []byte(l.State)) != 1:
		return errors.New("the answer is to another login (state)") // RFC 6749, section 10.12
	case said && issuer != p.cfg.Issuer || d.issuerInResponse && !said:
		return errors.New("the answer is another provider's (iss)") // RFC 9207, section 2.4
	case callback.Has("error"):
		return withoutSecrets(&oauth2.RetrieveError{ErrorCode: callback.Get("error")})
	case callback.Get("code") == "":
		return errors.New("the answer has no code")
	}
	return nil
}

// loggedIn makes an identity of what the token endpoint gave.
func (p *provider) loggedIn(ctx context.Context, d *discovered, l *login, token *oauth2.Token, now time.Time) (broker.LoggedIn, error) {
	raw, id, c, err := p.idToken(ctx, d, token, now)
	if err != nil {
		return broker.LoggedIn{}, err
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(l.Nonce)) != 1 {
		return broker.LoggedIn{}, errors.New("the ID token is of another login (nonce)")
	}
	authTime, err := c.seconds("auth_time")
	switch {
	case err != nil:
		return broker.LoggedIn{}, err
	case l.Fresh && authTime.Before(l.Begun.Add(-iatLeeway)):
		return broker.LoggedIn{}, errors.New("the provider did not ask for a fresh proof (auth_time)") // Core, section 3.1.2.1
	}
	who, tokens, err := p.identity(ctx, d, id, c, token, now)
	if err != nil {
		return broker.LoggedIn{}, err
	}
	who.Person.Login = authTime
	who.Proof = broker.Proof{Method: broker.MethodSession, SHA256: sha256.Sum256([]byte(raw)), Expires: id.Expiry.UTC()}
	sid, err := c.text("sid")
	if err != nil || len(sid) > maxSessions {
		return broker.LoggedIn{}, errors.New("its sid is malformed")
	}
	return broker.LoggedIn{Who: who, SID: sid, Tokens: tokens}, nil
}

// idToken verifies the ID token that came with a token answer (Core, section
// 3.1.3.7).
func (p *provider) idToken(ctx context.Context, d *discovered, token *oauth2.Token, now time.Time) (string, *oidc.IDToken, personClaims, error) {
	raw, _ := token.Extra("id_token").(string)
	if raw == "" || len(raw) > maxIDToken {
		return "", nil, personClaims{}, errors.New("the token endpoint gave no ID token, or one that is too long")
	}
	id, err := p.verifier(d, now).Verify(ctx, raw)
	if err != nil {
		return "", nil, personClaims{}, fmt.Errorf("the ID token does not hold: %w", err)
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
		return "", nil, personClaims{}, errors.New("the ID token was made for another client (azp)")
	case !now.Before(id.Expiry):
		return "", nil, personClaims{}, errors.New("the ID token has expired")
	case id.IssuedAt.After(now.Add(iatLeeway)):
		return "", nil, personClaims{}, errors.New("the ID token is from the future: compare the clocks")
	case id.AccessTokenHash != "" && id.VerifyAccessToken(token.AccessToken) != nil:
		return "", nil, personClaims{}, errors.New("the ID token came with another access token (at_hash)")
	}
	return raw, id, c, nil
}

// providerTokens are what a session keeps, sealed, to ask the provider again.
type providerTokens struct {
	Access  string    `json:"access,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	Refresh string    `json:"refresh,omitempty"`
}

// identity makes an identity of claims. Where the ID token does not say who is
// in which group, UserInfo does (Core, section 5.3).
func (p *provider) identity(ctx context.Context, d *discovered, id *oidc.IDToken, c personClaims, token *oauth2.Token, now time.Time) (broker.Identity, []byte, error) {
	groups, there, err := c.groups(p.cfg.GroupsClaim)
	if err != nil {
		return broker.Identity{}, nil, err
	}
	if !there || len(c.raw["name"]) == 0 {
		more, err := p.userInfo(ctx, d, id.Subject, token)
		switch {
		case err != nil && !there:
			return broker.Identity{}, nil, err
		case err == nil && !there:
			if groups, _, err = more.groups(p.cfg.GroupsClaim); err != nil {
				return broker.Identity{}, nil, err
			}
		}
		for _, name := range []string{"name", "email", p.cfg.ManagerClaim} {
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
	info, err := d.UserInfo(ctx, oauth2.StaticTokenSource(token))
	if err != nil {
		return personClaims{}, p.down("asking for the claims", errors.New("UserInfo does not answer as it should"))
	}
	if info.Subject != sub {
		return personClaims{}, errors.New("UserInfo is about somebody else (sub)") // Core, section 5.3.2
	}
	var payload json.RawMessage
	if err := info.Claims(&payload); err != nil {
		return personClaims{}, err
	}
	return parseClaims(payload)
}

// Refresh asks the provider again what it says of a person: by the refresh
// token, if it gave one, else by the access token as long as that lives.
func (p *People) Refresh(ctx context.Context, who broker.Identity, sealed []byte, now time.Time) (broker.Identity, []byte, error) {
	if who.Person == nil {
		return who, nil, errors.New("only people have providers")
	}
	one, err := p.provider(who.Person.Provider)
	if err != nil {
		return who, nil, err
	}
	d, err := one.discover(ctx, now)
	if err != nil {
		return who, nil, err
	}
	var tokens providerTokens
	if err := json.Unmarshal(sealed, &tokens); err != nil {
		return who, nil, fmt.Errorf("reading a provider's tokens: %w", err)
	}
	ctx, cancel := one.context(ctx)
	defer cancel()
	fresh, sealed, err := one.refresh(ctx, d, who, tokens, now)
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
			return who, nil, p.down("refreshing", err)
		}
		if _, ok := renewed.Extra("id_token").(string); ok {
			_, id, c, err := p.idToken(ctx, d, renewed, now)
			if err == nil && id.Subject != sub {
				err = errors.New("the new ID token is about somebody else (sub)") // Core, section 12.2
			}
			if err != nil {
				return who, nil, err
			}
			return p.identity(ctx, d, id, c, renewed, now)
		}
		token = renewed
	case tokens.Access == "" || !now.Before(tokens.Expires):
		return who, nil, errors.New("it gave nothing to ask again by: have it issue refresh tokens")
	}
	c, err := p.userInfo(ctx, d, sub, token)
	if err != nil {
		return who, nil, err
	}
	return p.identity(ctx, d, &oidc.IDToken{Subject: sub}, c, token, now)
}

// LogoutToken verifies a provider's word that it logged somebody out (OpenID
// Connect Back-Channel Logout 1.0, section 2.6). That the same word counts once
// is up to whoever acts on it.
func (p *People) LogoutToken(ctx context.Context, name, raw string, now time.Time) (broker.LogoutWord, error) {
	var word broker.LogoutWord
	one, err := p.provider(name)
	if err != nil {
		return word, err
	}
	if raw == "" || len(raw) > maxIDToken {
		return word, errors.New("there is no logout token, or one that is too long")
	}
	d, err := one.discover(ctx, now)
	if err != nil {
		return word, err
	}
	ctx, cancel := one.context(ctx)
	defer cancel()
	token, err := one.verifier(d, now).VerifyLogout(ctx, raw)
	switch {
	case err != nil:
		return word, fmt.Errorf("provider %s: %w", name, err)
	case !now.Before(token.Expiry) || token.IssuedAt.After(now.Add(iatLeeway)) || now.Sub(token.IssuedAt) > broker.LogoutFor:
		return word, errors.New("the logout token is not of now")
	case len(token.SessionID) > maxSessions || token.Subject != "" && checkSubject(token.Subject) != nil:
		return word, errors.New("the logout token names nobody who could be logged in")
	}
	return broker.LogoutWord{Provider: name, Sub: token.Subject, SID: token.SessionID, ID: token.TokenID, Issued: token.IssuedAt}, nil
}
