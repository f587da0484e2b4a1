package server

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/attest"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/internal/softkey"
)

func withPasskeys(t *testing.T) func(*Config) {
	return func(c *Config) {
		withPeople(c)
		passkeys, err := attest.NewPasskeys("broker.acme.test", "https://broker.acme.test")
		if err != nil {
			t.Fatal(err)
		}
		c.Passkeys = passkeys
	}
}

// A device is a person's browser with an authenticator. It does the work of passkey.js.
type device struct {
	*browser
	key *softkey.Key
}

func newDevice(t *testing.T, w *world, person string) *device {
	t.Helper()
	key, err := softkey.New("broker.acme.test", "https://broker.acme.test")
	if err != nil {
		t.Fatal(err)
	}
	d := &device{newBrowser(t, w), key}
	d.logIn(person, "/ui/")
	return d
}

// options posts a script's call and returns the challenge and the ticket.
func (d *device) options(t *testing.T, path, form string) (challenge []byte, ticket string) {
	t.Helper()
	status, _, text := d.visit(http.MethodPost, path, form)
	var answer struct {
		Options   *struct{ PublicKey struct{ Challenge string } }
		PublicKey struct{ Challenge string }
		Ticket    string
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil || status != http.StatusOK {
		t.Fatalf("%s: %d %v %s", path, status, err, text)
	}
	if answer.Options != nil {
		answer.PublicKey = answer.Options.PublicKey
	}
	challenge, err := base64.RawURLEncoding.DecodeString(answer.PublicKey.Challenge)
	if err != nil {
		t.Fatal(err)
	}
	return challenge, answer.Ticket
}

func (d *device) enrol(t *testing.T) (status int, where string) {
	t.Helper()
	challenge, ticket := d.options(t, "/ui/passkeys/options", "")
	response, err := d.key.Create(challenge)
	if err != nil {
		t.Fatal(err)
	}
	status, where, _ = d.visit(http.MethodPost, "/ui/passkeys", formOf("do", "enrol", "name", "in my pocket", "ticket", ticket, "response", string(response)))
	return status, where
}

// sign adds the passkey's signature to a form.
func (d *device) sign(t *testing.T, path, form string) string {
	t.Helper()
	challenge, ticket := d.options(t, path, form)
	data, client, signature, err := d.key.Sign(challenge)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	made, err := json.Marshal(assertion{encode(d.key.ID), encode(data), encode(client), encode(signature)})
	if err != nil {
		t.Fatal(err)
	}
	return form + "&" + url.Values{"ticket": {ticket}, "assertion": {string(made)}}.Encode()
}

func TestSignedApproval(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPasskeys(t))
	ben, cleo := newDevice(t, w, "login/ben"), newDevice(t, w, "login/cleo")
	r := w.guarded(t, signIt)
	path := "/ui/requests/" + r.ID
	good := formOf("do", "approve", "digest", r.Digest, "scope.read", "on", "comment", "as agreed", "ttl", "5m")
	if status, _, page := ben.visit(http.MethodGet, path, ""); status != http.StatusOK || !strings.Contains(page, `data-sign="approve"`) || !strings.Contains(page, "passkey-") {
		t.Errorf("the page does not ask for a signature: %d\n%s", status, page)
	}
	if status, _, page := ben.visit(http.MethodPost, path, good); status != http.StatusForbidden || !strings.Contains(page, "sign with your passkey") {
		t.Errorf("unsigned: %d", status)
	}
	if status, _, text := ben.visit(http.MethodPost, path+"/sign", good); status != http.StatusForbidden || !strings.Contains(text, "you have no passkey") || !strings.Contains(text, `"code":"signature_required"`) {
		t.Errorf("without a passkey: %d %s", status, text)
	}
	for _, d := range []*device{ben, cleo} {
		if status, where := d.enrol(t); status != http.StatusSeeOther || where != "/ui/passkeys?done=enrolled" {
			t.Fatalf("enrolling: %d to %q", status, where)
		}
	}
	if status, _, page := ben.visit(http.MethodGet, "/ui/passkeys", ""); status != http.StatusOK || !strings.Contains(page, "in my pocket") {
		t.Errorf("the passkeys: %d %s", status, page)
	}
	signed := ben.sign(t, path+"/sign", good)
	for name, form := range map[string]string{
		"another comment":    strings.Replace(signed, "as+agreed", "as+asked", 1),
		"longer":             strings.Replace(signed, "ttl=5m", "ttl=6m", 1),
		"another ticket":     strings.Replace(signed, "ticket=", "ticket=A", 1),
		"a form as ticket":   strings.Replace(signed, "ticket=", "tickets=", 1),
		"no JSON":            strings.Replace(signed, "assertion=%7B", "assertion=%5B", 1),
		"the ticket of cleo": signed[:strings.Index(signed, "&assertion=")] + cleo.sign(t, path+"/sign", good)[strings.Index(signed, "&assertion="):],
	} {
		if status, _, _ := ben.visit(http.MethodPost, path, form); status != http.StatusForbidden && status != http.StatusBadRequest {
			t.Errorf("%s: got the status %d", name, status)
		}
	}
	if status, _, _ := cleo.visit(http.MethodPost, path, signed); status != http.StatusForbidden {
		t.Errorf("sent by another person: got %d", status)
	}
	if status, where, page := ben.visit(http.MethodPost, path, signed); status != http.StatusSeeOther {
		t.Fatalf("approving: %d to %q %s", status, where, page)
	}
	if status, _, _ := cleo.visit(http.MethodPost, path, cleo.sign(t, path+"/sign", good)); status != http.StatusSeeOther {
		t.Fatalf("approving: %d", status)
	}
	now := must[*api.Request](t)(w.as(agent).Request(t.Context(), r.ID))
	if now.Status != api.StatusApproved || !now.Approvals.Given[0].Signed || !now.Approvals.Given[1].Signed {
		t.Errorf("got %+v", now)
	}
	w.verifyLog(t, 2, map[string]*device{"login/ben": ben, "login/cleo": cleo})
}

// verifyLog verifies the log as an auditor who knows the people's passkeys.
func (w *world) verifyLog(t *testing.T, signatures int64, devices map[string]*device) {
	t.Helper()
	var pins []verify.Approver
	for person, d := range devices {
		public, err := d.key.Public()
		if err != nil {
			t.Fatal(err)
		}
		pins = append(pins, verify.Approver{Person: person, RP: "broker.acme.test", Credential: d.key.ID, Public: public})
	}
	if report, err := verify.Verify(t.Context(), w.store.Source(), verify.Options{Approvers: pins}); err != nil || report.Signatures != signatures {
		t.Errorf("the log: %+v, %v", report, err)
	}
}

// If policy requires a signature, both verdicts are signed in the browser. Terminals
// cannot sign and get an error.
func TestSignedReview(t *testing.T) {
	t.Parallel()
	for verdict, other := range map[string]string{api.Justified: api.Unjustified, api.Unjustified: api.Justified} {
		t.Run(verdict, func(t *testing.T) {
			w := newWorld(t, withPasskeys(t))
			ben, cleo := newDevice(t, w, "login/ben"), newDevice(t, w, "login/cleo")
			for _, d := range []*device{ben, cleo} {
				if status, where := d.enrol(t); status != http.StatusSeeOther {
					t.Fatalf("enrolling: %d to %q", status, where)
				}
			}
			r := must[*api.Request](t)(w.as(agent).Ask(t.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}, BreakGlass: true, Justification: signIt}))
			path := "/ui/requests/" + r.ID
			good := formOf("do", verdict, "digest", r.Digest, "comment", "it burned")
			if _, err := w.as("login/ben").Review(t.Context(), r.ID, api.Finding{Verdict: verdict, Digest: r.Digest, Comment: "it burned"}); !errors.Is(err, api.SignatureRequired) {
				t.Errorf("in a terminal: %v", err)
			}
			if status, _, page := ben.visit(http.MethodGet, path, ""); status != http.StatusOK || !strings.Contains(page, `data-sign="justified unjustified"`) || !strings.Contains(page, "passkey-") {
				t.Errorf("the page does not ask for a signature: %d\n%s", status, page)
			}
			if status, _, page := ben.visit(http.MethodPost, path, good); status != http.StatusForbidden || !strings.Contains(page, "sign with your passkey") {
				t.Errorf("unsigned: %d", status)
			}
			signed, cleos := ben.sign(t, path+"/sign", good), cleo.sign(t, path+"/sign", good)
			mixed, hers := must[url.Values](t)(url.ParseQuery(signed)), must[url.Values](t)(url.ParseQuery(cleos))
			mixed.Set("assertion", hers.Get("assertion"))
			for name, form := range map[string]string{
				"other words":           strings.Replace(signed, "it+burned", "it+smoked", 1),
				"turned":                strings.Replace(signed, "do="+verdict, "do="+other, 1),
				"as an approval":        strings.Replace(signed, "do="+verdict, "do=approve&scope.read=on", 1),
				"another ticket":        strings.Replace(signed, "ticket=", "ticket=A", 1),
				"the signature of cleo": cleos,
				"the assertion of cleo": mixed.Encode(),
				"no assertion":          strings.Replace(signed, "assertion=", "assertions=", 1),
				"no words":              strings.Replace(signed, "it+burned", "", 1),
			} {
				if status, _, _ := ben.visit(http.MethodPost, path, form); status != http.StatusForbidden && status != http.StatusBadRequest {
					t.Errorf("%s: got the status %d", name, status)
				}
			}
			if status, where, page := ben.visit(http.MethodPost, path, signed); status != http.StatusSeeOther || where != path+"?done="+verdict {
				t.Fatalf("reviewing: %d to %q %s", status, where, page)
			}
			now := must[*api.Request](t)(w.as(agent).Request(t.Context(), r.ID))
			if now.Review.ClosedAt.IsZero() || !now.Review.Given[0].Signed || now.Review.Given[0].Verdict != verdict {
				t.Errorf("got %+v", now.Review)
			}
			if _, _, page := ben.visit(http.MethodGet, path, ""); !strings.Contains(page, verdict+", signed") {
				t.Errorf("the page does not show the signature:\n%s", page)
			}
			w.verifyLog(t, 1, map[string]*device{"login/ben": ben, "login/cleo": cleo})
		})
	}
}

func TestEnrolRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPasskeys(t))
	ben, cleo := newDevice(t, w, "login/ben"), newDevice(t, w, "login/cleo")
	challenge, ticket := ben.options(t, "/ui/passkeys/options", "")
	response, err := ben.key.Create(challenge)
	if err != nil {
		t.Fatal(err)
	}
	form := formOf("do", "enrol", "ticket", ticket, "response", string(response))
	if status, _, _ := cleo.visit(http.MethodPost, "/ui/passkeys", form); status != http.StatusForbidden {
		t.Errorf("the ticket of another person: got %d", status)
	}
	for name, bad := range map[string]string{
		"no response": formOf("do", "enrol", "ticket", ticket), "no ticket": formOf("do", "enrol", "response", string(response)), "nothing to do": "",
		"removing none": formOf("do", "remove", "passkey", "AAAA"), "removing nonsense": formOf("do", "remove", "passkey", "!"),
	} {
		if status, _, _ := ben.visit(http.MethodPost, "/ui/passkeys", bad); status < 400 || status > 499 {
			t.Errorf("%s: got the status %d", name, status)
		}
	}
	if status, _, _ := ben.visit(http.MethodPost, "/ui/passkeys", form, "Origin", "https://evil.test"); status != http.StatusForbidden {
		t.Errorf("from another site: %d", status)
	}
	if status, _, _ := ben.visit(http.MethodPost, "/ui/passkeys", form); status != http.StatusSeeOther {
		t.Errorf("enrolling: got %d", status)
	}
	credential := encodeBase64URL(ben.key.ID)
	if status, _, page := cleo.visit(http.MethodGet, "/ui/vouch?person=login/ben&passkey="+credential, ""); status != http.StatusOK || !strings.Contains(page, "login/ben") || strings.Contains(page, "pocket") {
		t.Errorf("vouching: got %d %s", status, page)
	}
	for _, query := range []string{"", "?person=login/ben", "?person=login/ben&passkey=!", "?person=login/zoe&passkey=" + credential, "?person=login/cleo&passkey=" + credential} {
		if status, _, _ := cleo.visit(http.MethodGet, "/ui/vouch"+query, ""); status != http.StatusBadRequest && status != http.StatusNotFound {
			t.Errorf("%q: got %d", query, status)
		}
	}
	if status, _, _ := ben.visit(http.MethodPost, "/ui/passkeys", formOf("do", "remove", "passkey", credential)); status != http.StatusSeeOther {
		t.Errorf("removing: %d", status)
	}
	for _, path := range []string{"/ui/passkeys", "/ui/vouch?person=login/ben&passkey=" + credential} {
		if status, where, _ := newBrowser(t, w).visit(http.MethodGet, path, ""); status != http.StatusSeeOther || !strings.HasPrefix(where, "/ui/login") {
			t.Errorf("%s without a session: %d to %q", path, status, where)
		}
	}
}
