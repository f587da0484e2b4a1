package signals

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/broker/signal"
	"accessbroker.internal/signals/signalstest"
)

var ana = signalstest.Person(provider, "ana")

func TestEventIsVerifiedAndApplied(t *testing.T) {
	w := newWorld(t)
	happened := time.Now().Add(-time.Minute).Unix()
	claims := w.Claims(signalstest.AccountDisabled, ana, map[string]any{"reason": "hijacking", "event_timestamp": happened})
	err := w.receiver.receive(t.Context(), w.Sign(claims), claims["jti"].(string), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	events := w.events()
	if len(events) != 1 {
		t.Fatalf("got %d events, want 1", len(events))
	}
	e := events[0]
	if e.Transmitter != "okta" || e.ID != claims["jti"] || e.Kind != signal.KindAccountDisabled || e.Subject != (signal.Subject{Account: "login/ana"}) || e.Reason != "hijacking" || e.At.Unix() != happened {
		t.Errorf("got %+v", e)
	}
}

// A token that is not exactly a security event token of this transmitter for this receiver
// is rejected, with the code of RFC 8935.
func TestHostileTokensAreRejected(t *testing.T) {
	w := newWorld(t)
	good := func() map[string]any { return w.Claims(signalstest.SessionRevoked, ana, nil) }
	header := func(name string, value any) map[string]any {
		h := map[string]any{"typ": "secevent+jwt", "alg": "RS256", "kid": "key-1"}
		if h[name] = value; value == nil {
			delete(h, name)
		}
		return h
	}
	claims := func(name string, value any) map[string]any {
		c := good()
		if c[name] = value; value == nil {
			delete(c, name)
		}
		return c
	}
	parts := strings.Split(w.Sign(good()), ".")
	unsigned := base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"secevent+jwt","alg":"none"}`))
	hmac := base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"secevent+jwt","alg":"HS256","kid":"key-1"}`))
	many := map[string]any{}
	for i := range maxEvents + 1 {
		many[fmt.Sprintf("https://example.test/%d", i)] = map[string]any{}
	}
	for _, c := range []struct {
		name, token string
		outcome     signal.Outcome
		code        string
	}{
		{"empty", "", signal.Malformed, codeInvalidRequest},
		{"two parts", parts[0] + "." + parts[1], signal.Malformed, codeInvalidRequest},
		{"too long", strings.Repeat("a", MaxSET+1), signal.Malformed, codeInvalidRequest},
		{"no typ", w.SignAs(header("typ", nil), good()), signal.Malformed, codeInvalidRequest},
		{"an ID token", w.SignAs(header("typ", "JWT"), good()), signal.Malformed, codeInvalidRequest},
		{"a logout token", w.SignAs(header("typ", "logout+jwt"), good()), signal.Malformed, codeInvalidRequest},
		{"an access token", w.SignAs(header("typ", "at+jwt"), good()), signal.Malformed, codeInvalidRequest},
		{"alg none", unsigned + "." + parts[1] + ".", signal.BadSignature, codeInvalidKey},
		{"HMAC with the public key", hmac + "." + parts[1] + "." + parts[2], signal.BadSignature, codeInvalidKey},
		{"unknown key", w.SignAs(header("kid", "other"), good()), signal.BadSignature, codeInvalidKey},
		{"key in the header", w.SignAs(map[string]any{"typ": "secevent+jwt", "alg": "RS256", "kid": "own", "jwk": map[string]any{"kty": "RSA"}}, good()), signal.BadSignature, codeInvalidKey},
		{"critical extension", w.SignAs(header("crit", []string{"b64"}), good()), signal.Malformed, codeInvalidRequest},
		{"changed payload", parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"x"}`)) + "." + parts[2], signal.BadSignature, codeInvalidKey},
		{"no issuer", w.Sign(claims("iss", nil)), signal.ForeignIssuer, codeInvalidIssuer},
		{"other issuer", w.Sign(claims("iss", w.Issuer+"/")), signal.ForeignIssuer, codeInvalidIssuer},
		{"no audience", w.Sign(claims("aud", nil)), signal.ForeignAudience, codeInvalidAudience},
		{"other audience", w.Sign(claims("aud", "https://other.test")), signal.ForeignAudience, codeInvalidAudience},
		{"other audiences", w.Sign(claims("aud", []string{audience + "/", "https://other.test"})), signal.ForeignAudience, codeInvalidAudience},
		{"audience not text", w.Sign(claims("aud", []any{audience, 7})), signal.ForeignAudience, codeInvalidAudience},
		{"sub", w.Sign(claims("sub", "ana")), signal.Malformed, codeInvalidRequest},
		{"exp", w.Sign(claims("exp", time.Now().Add(time.Hour).Unix())), signal.Malformed, codeInvalidRequest},
		{"nonce", w.Sign(claims("nonce", "n")), signal.Malformed, codeInvalidRequest},
		{"no jti", w.Sign(claims("jti", nil)), signal.Malformed, codeInvalidRequest},
		{"jti not text", w.Sign(claims("jti", 7)), signal.Malformed, codeInvalidRequest},
		{"long jti", w.Sign(claims("jti", strings.Repeat("j", maxID+1))), signal.Malformed, codeInvalidRequest},
		{"invisible jti", w.Sign(claims("jti", "a\u202eb")), signal.Malformed, codeInvalidRequest},
		{"no iat", w.Sign(claims("iat", nil)), signal.Malformed, codeInvalidRequest},
		{"iat as text", w.Sign(claims("iat", "1615305159")), signal.Malformed, codeInvalidRequest},
		{"iat in milliseconds", w.Sign(claims("iat", time.Now().UnixMilli())), signal.Malformed, codeInvalidRequest},
		{"negative iat", w.Sign(claims("iat", -1)), signal.Malformed, codeInvalidRequest},
		{"from the future", w.Sign(claims("iat", time.Now().Add(leeway+10*time.Second).Unix())), signal.Future, codeInvalidRequest},
		{"old", w.Sign(claims("iat", time.Now().Add(-DefaultMaxAge-10*time.Second).Unix())), signal.Old, codeInvalidRequest},
		{"no events", w.Sign(claims("events", nil)), signal.Malformed, codeInvalidRequest},
		{"empty events", w.Sign(claims("events", map[string]any{})), signal.Malformed, codeInvalidRequest},
		{"many events", w.Sign(claims("events", many)), signal.Malformed, codeInvalidRequest},
		{"event not an object", w.Sign(claims("events", map[string]any{signalstest.SessionRevoked: "now"})), signal.Malformed, codeInvalidRequest},
		{"two different events", w.Sign(claims("events", map[string]any{signalstest.AccountDisabled: map[string]any{}, signalstest.AccountEnabled: map[string]any{}})), signal.Malformed, codeInvalidRequest},
		{"no subject", w.Sign(claims("sub_id", nil)), signal.Malformed, codeInvalidRequest},
		{"subject without format", w.Sign(claims("sub_id", map[string]any{"sub": "ana"})), signal.Malformed, codeInvalidRequest},
		{"event from the future", w.Sign(w.Claims(signalstest.SessionRevoked, ana, map[string]any{"event_timestamp": time.Now().Add(time.Hour).Unix()})), signal.Future, codeInvalidRequest},
		{"time as text", w.Sign(w.Claims(signalstest.SessionRevoked, ana, map[string]any{"event_timestamp": "now"})), signal.Malformed, codeInvalidRequest},
		{"unknown change", w.Sign(w.Claims(signalstest.CredentialChange, ana, map[string]any{"change_type": "steal"})), signal.Malformed, codeInvalidRequest},
		{"unknown status", w.Sign(w.Claims(signalstest.StreamUpdated, map[string]any{"format": "opaque", "id": "stream-1"}, map[string]any{"status": "x"})), signal.Malformed, codeInvalidRequest},
		{"two subjects", w.Sign(w.Claims(signalstest.AccountDisabled, ana, map[string]any{"subject": signalstest.Person(provider, "bob")})), signal.Malformed, codeInvalidRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := w.outcomes[c.outcome]
			err := w.receiver.receive(t.Context(), c.token, "", time.Now())
			var rejection *Rejection
			if !errors.As(err, &rejection) || rejection.Code != c.code || rejection.Outcome != c.outcome || w.outcomes[c.outcome] != before+1 {
				t.Errorf("got %v, %+v, counted %d", err, rejection, w.outcomes[c.outcome]-before)
			}
			if events := w.events(); len(events) != 0 {
				t.Errorf("got events %+v, want none", events)
			}
		})
	}
	if err := w.receiver.receive(t.Context(), w.Sign(good()), "", time.Now()); err != nil || len(w.events()) != 1 {
		t.Errorf("a good token: got %v", err)
	}
}

// Members that appear twice could be read differently by another parser.
func TestAmbiguousTokenIsRejected(t *testing.T) {
	w := newWorld(t)
	for _, payload := range []string{`{"iss":"a","iss":"b"}`, `{} {}`, `[]`, strings.Repeat(`{"a":`, 40) + `1` + strings.Repeat(`}`, 40)} {
		token := w.Raw(payload)
		var rejection *Rejection
		if err := w.receiver.receive(t.Context(), token, "", time.Now()); !errors.As(err, &rejection) || rejection.Outcome != signal.Malformed {
			t.Errorf("%.40s: got %v", payload, err)
		}
	}
}

// The time window has exact bounds.
func TestTimeWindow(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.MaxAge = time.Hour })
	now := time.Unix(1_800_000_000, 0)
	for at, want := range map[time.Time]signal.Outcome{
		now.Add(leeway): signal.Applied, now.Add(leeway + time.Second): signal.Future,
		now.Add(-time.Hour): signal.Applied, now.Add(-time.Hour - time.Second): signal.Old,
	} {
		claims := w.Claims(signalstest.SessionRevoked, ana, nil)
		claims["iat"] = at.Unix()
		w.outcomes[want] = 0
		_ = w.receiver.receive(t.Context(), w.Sign(claims), "", now)
		if w.outcomes[want] != 1 {
			t.Errorf("%s after now: got %v, want %s", at.Sub(now), w.outcomes, want)
		}
	}
}

// Without its keys, nothing can be said about a token, so the transmitter must send it
// again.
func TestTokenWithoutKeysIsNotRejected(t *testing.T) {
	w := newWorld(t)
	w.Fail(http.StatusInternalServerError)
	token := w.Sign(w.Claims(signalstest.SessionRevoked, ana, nil))
	err := w.receiver.receive(t.Context(), token, "", time.Now())
	var rejection *Rejection
	var unreadable *jwks.FetchError
	if errors.As(err, &rejection) || !errors.As(err, &unreadable) || w.outcomes[signal.Failed] != 1 {
		t.Errorf("got %v, %v", err, w.outcomes)
	}
}

func TestListedKeys(t *testing.T) {
	w := newWorld(t)
	set, err := jwks.Parse(w.JWKS(), "", "sig")
	if err != nil {
		t.Fatal(err)
	}
	w.receiver.remote, w.receiver.cfg.Keys = nil, set.Keys
	if err := w.receiver.receive(t.Context(), w.Sign(w.Claims(signalstest.SessionRevoked, ana, nil)), "", time.Now()); err != nil || len(w.events()) != 1 {
		t.Errorf("got %v", err)
	}
	w.receiver.cfg.Keys = nil
	if err := w.receiver.receive(t.Context(), w.Sign(w.Claims(signalstest.SessionRevoked, ana, nil)), "", time.Now()); err == nil {
		t.Error("without keys: got no error")
	}
}

// Everything that the specifications call an event of these kinds is read as one.
func TestEventTypes(t *testing.T) {
	w := newWorld(t)
	stream := map[string]any{"format": "opaque", "id": "stream-1"}
	for name, kind := range kinds {
		subject, payload := ana, map[string]any{}
		switch kind {
		case signal.KindVerification:
			subject = stream
		case signal.KindStreamUpdated:
			subject, payload = stream, map[string]any{"status": "paused"}
		}
		if err := w.receiver.receive(t.Context(), w.Sign(w.Claims(name, subject, payload)), "", time.Now()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if events := w.events(); len(events) != 1 || events[0].Kind != kind {
			t.Errorf("%s: got %+v, want %s", name, events, kind)
		}
	}
	for _, name := range []string{caep + "token-claims-change", caep + "device-compliance-change", risc + "identifier-changed", risc + "opt-in", "https://example.test/own"} {
		w.outcomes[signal.Unsupported] = 0
		if err := w.receiver.receive(t.Context(), w.Sign(w.Claims(name, ana, nil)), "", time.Now()); err != nil || len(w.events()) != 0 || w.outcomes[signal.Unsupported] != 1 {
			t.Errorf("%s: got %v, %v", name, err, w.outcomes)
		}
	}
	both := w.Claims(risc+"sessions-revoked", ana, nil)
	both["events"].(map[string]any)[signalstest.SessionRevoked] = map[string]any{}
	if err := w.receiver.receive(t.Context(), w.Sign(both), "", time.Now()); err != nil || len(w.events()) != 1 {
		t.Errorf("two names of one event: got %v", err)
	}
}
