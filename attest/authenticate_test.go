package attest

import (
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// One caller a call: what may stand beside what.
func TestAuthenticate(t *testing.T) {
	w := newWorld(t)
	server := w.serve("optional")
	mine, again := w.token(triage, time.Minute), w.token(triage, 2*time.Minute)
	theirs := w.token("spiffe://acme.test/agent/other", time.Minute)
	expired := w.sign(w.fill(goodHeader, time.Now()), w.fill(claims(`%n+60`, `%n-5`), time.Now()))
	person := w.sign(w.fill(goodHeader, time.Now()), w.fill(claims(`spiffe://acme.test/agent/triage`, `ana`), time.Now()))
	stranger := must(newCA(t, "acme.test").X509SVID(triage, time.Hour))
	plain, mutual, bad := w.client(), w.client(w.svid(triage, time.Hour)), w.client(stranger)

	for _, test := range []struct {
		name         string
		client       *http.Client
		bearer, body string
		method, code string
		counted      string
	}{
		{"nothing", plain, "", "", "", "unauthenticated", "none no_proof"},
		{"bearer", plain, mine, "", "jwt-svid", "", ""},
		{"body", plain, "", mine, "jwt-svid", "", ""},
		{"the same twice", plain, mine, mine, "jwt-svid", "", ""},
		{"two tokens of one workload", plain, mine, again, "", "two_identities", "none two_identities"},
		{"another's token in the body", plain, mine, theirs, "", "foreign_subject_token", "none foreign_subject"},
		{"a person's token in the body", plain, mine, person, "", "foreign_subject_token", "none foreign_subject"},
		{"an expired token in the body", plain, mine, expired, "", "unauthenticated", "jwt-svid expired"},
		{"a bad bearer token", plain, "x", mine, "", "unauthenticated", "jwt-svid malformed"},
		{"certificate", mutual, "", "", "x509-svid", "", ""},
		{"certificate and bearer", mutual, mine, "", "", "two_identities", "none two_identities"},
		{"certificate and another's bearer", mutual, theirs, "", "", "two_identities", "none two_identities"},
		{"certificate, bearer and body", mutual, mine, mine, "", "two_identities", "none two_identities"},
		{"certificate and body", mutual, "", mine, "x509-svid", "", ""},
		{"certificate and another's body", mutual, "", theirs, "", "foreign_subject_token", "none foreign_subject"},
		{"certificate and a person's body", mutual, "", person, "", "foreign_subject_token", "none foreign_subject"},
		{"certificate and an expired body", mutual, "", expired, "", "unauthenticated", "jwt-svid expired"},
		{"bad certificate", bad, "", "", "", "unauthenticated", "x509-svid untrusted"},
		{"bad certificate and good body", bad, "", mine, "", "unauthenticated", "x509-svid untrusted"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.failures()
			a := call(t, test.client, server, test.bearer, test.body)
			if a.Method != test.method || a.Code != test.code || (a.ID == triage) != (test.code == "") || (a.Detail != "") != (test.code != "") {
				t.Errorf("answered %+v", a)
			}
			if n := strings.Join(w.failures(), ", "); n != test.counted {
				t.Errorf("counted %q, not %q", n, test.counted)
			}
		})
	}
}

func TestAuthorizationHeader(t *testing.T) {
	w := newWorld(t)
	token := w.token(triage, time.Minute)
	for _, test := range []struct {
		values []string
		want   Cause
	}{
		{[]string{"Bearer " + token}, ""},
		{[]string{"bearer " + token}, ""}, // RFC 9110, section 11.1
		{[]string{"Bearer " + token, "Bearer " + token}, CauseMalformed},
		{[]string{token}, CauseMalformed},
		{[]string{"Bearer"}, CauseMalformed},
		{[]string{"Bearer "}, CauseMalformed},
		{[]string{""}, CauseMalformed},
		{[]string{"Bearer  " + token}, CauseMalformed},
		{[]string{"Bearer " + token + " "}, CauseMalformed},
		{[]string{"Bearer " + token + ", Basic eA=="}, CauseMalformed},
		{[]string{"Basic YTpi"}, CauseMalformed},
		{[]string{"DPoP " + token}, CauseMalformed},
	} {
		r := &http.Request{Header: http.Header{"Authorization": test.values}}
		who, err := w.verifier.Authenticate(r, "")
		if got := causeOf(t, err); got != test.want || (who.ID == triage) != (test.want == "") {
			t.Errorf("%d values %.10q: %q, not %q", len(test.values), test.values[0], got, test.want)
		}
	}
}

// What was remembered under the old keys counts no more under the new ones,
// neither tokens nor live connections.
func TestRotation(t *testing.T) {
	w := newWorld(t)
	server := w.serve("optional")
	token, plain, mutual := w.token(triage, time.Minute), w.client(), w.client(w.svid(triage, time.Hour))
	both := func() [2]string { // over the connections of before
		return [2]string{call(t, plain, server, token, "").Code, call(t, mutual, server, "", "").Code}
	}
	both()
	step := func(name string, change func(), grows uint64, want [2]string) {
		t.Helper()
		before := w.source.Generation()
		change()
		w.publish()
		w.source.poll()
		if g := w.source.Generation() - before; g != grows {
			t.Errorf("%s: the generation grew by %d, not %d", name, g, grows)
		}
		if got := both(); got != want {
			t.Errorf("%s: answered %q, not %q", name, got, want)
		}
	}
	step("nothing new", func() {}, 0, [2]string{})
	step("new keys beside the old", func() { check(t, w.ca.RotateX509()); check(t, w.ca.RotateJWT()) }, 1, [2]string{})
	step("the old JWT key is gone", w.ca.RetireJWT, 1, [2]string{"unauthenticated", ""})
	w.failures()
	step("the old X.509 authority is gone", w.ca.RetireX509, 1, [2]string{"unauthenticated", "unauthenticated"})
	if n := w.failures(); !slices.Equal(n, []string{"jwt-svid unknown_key", "x509-svid untrusted"}) {
		t.Errorf("counted %v", n)
	}
	// The server's own certificate is read anew, too, or nobody could connect.
	files := w.source.certs[0]
	w.writeCert(files.certPath, files.keyPath, "spiffe://acme.test/broker", "127.0.0.1")
	w.source.poll()
	fresh := w.token(triage, time.Minute)
	if a := call(t, w.client(w.svid(triage, time.Hour)), server, "", fresh); a.ID != triage {
		t.Errorf("with new SVIDs: answered %+v", a)
	}
}

// A file that can't be used leaves in force what was known, and says so.
func TestBrokenBundle(t *testing.T) {
	w := newWorld(t)
	token := w.token(triage, time.Minute)
	generation := w.source.Generation()
	for _, content := range []string{"", "{", `{"keys":null}`, `{"keys":[]}`, "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n"} {
		check(t, os.WriteFile(w.bundle, []byte(content), 0o600))
		w.source.poll()
		if w.source.Degraded() == nil || w.source.Ready() != nil || w.source.Generation() != generation {
			t.Errorf("%q: degraded %v, ready %v", content, w.source.Degraded(), w.source.Ready())
		}
		w.verifier.tokens = newProofCache(16) // nothing is remembered
		if _, err := w.verifier.JWT(token, time.Now()); err != nil {
			t.Errorf("%q: %v", content, err)
		}
	}
	check(t, os.Remove(w.bundle))
	w.source.poll()
	if err := w.source.Degraded(); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("without the file: %v", err)
	}
	w.publish()
	w.source.poll()
	if err := w.source.Degraded(); err != nil {
		t.Errorf("with the file back: %v", err)
	}
}

// A token's times are looked at each time, and so is what nobody remembers.
func TestRememberedTimes(t *testing.T) {
	w := newWorld(t)
	token := w.token(triage, time.Minute)
	who, err := w.verifier.JWT(token, time.Now())
	check(t, err)
	for _, test := range []struct {
		at   time.Time
		want Cause
	}{
		{who.Proof.Expires.Add(-time.Nanosecond), ""},
		{who.Proof.Expires, CauseExpired},
		{who.Proof.Expires.Add(time.Hour), CauseExpired},
		{time.Now().Add(-Leeway - 2*time.Second), CauseNotYetValid},
	} {
		who, err := w.verifier.JWT(token, test.at)
		if got := causeOf(t, err); got != test.want || (who.ID == "") != (test.want != "") {
			t.Errorf("at %s: %q, not %q", test.at, got, test.want)
		}
	}
}
