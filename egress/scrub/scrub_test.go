package scrub

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"accessbroker.internal/api"
	"accessbroker.internal/egress/egresstest"
)

const (
	token    = "ghp_J4x/Qz7+Tm2&Wn9\"Kd=Lf"
	password = "correct horse%41 batt\\ery"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func inJSON(text string) string { return strings.Trim(strconv.Quote(text), `"`) }

// stars returns the number of masked bytes at least: the bytes of the form that depend on
// the secret alone.
func stars(s string) int { return strings.Count(s, "*") }

func TestSecretIsRemovedInEveryForm(t *testing.T) {
	for _, secret := range []string{token, password, "hvs.CAESIJ9", "pässwörd-€uro-😀"} {
		s := New(secret)
		for name, echo := range egresstest.Forms {
			text := "before " + echo(secret) + " after"
			t.Run(name, func(t *testing.T) {
				clean := s.String(text)
				if len(clean) != len(text) {
					t.Fatalf("got %d bytes, want %d", len(clean), len(text))
				}
				if stars(clean) < len(secret)-2 {
					t.Errorf("got %q for %q", clean, text)
				}
				for name, r := range map[string]io.Reader{
					"whole": strings.NewReader(text), "byte by byte": iotest.OneByteReader(strings.NewReader(text)),
					"halves": iotest.HalfReader(strings.NewReader(text)), "data with error": iotest.DataErrReader(strings.NewReader(text)),
				} {
					got, err := io.ReadAll(s.Reader(io.NopCloser(r)))
					if err != nil || string(got) != clean {
						t.Errorf("%s: got %q, %v; want %q", name, got, err, clean)
					}
				}
			})
		}
	}
}

func TestOtherTextStays(t *testing.T) {
	s := New(token, password)
	for _, text := range []string{
		"", "a", "ghp_J4x", `{"a":"\u0041\n","b":"%41&amp;"}`, strings.Repeat("ghp_J4x ", 1000),
		"a line of prose with aVeryLongIdentifierAtItsEnd\nand another", "%", `\`, "&", "&#", "%2", `\u00`, "100% & more\\",
	} {
		if got := s.String(text); got != text {
			t.Errorf("got %q, want %q", got, text)
		}
		got, err := io.ReadAll(s.Reader(io.NopCloser(strings.NewReader(text))))
		if err != nil || string(got) != text {
			t.Errorf("reader: got %q, %v; want %q", got, err, text)
		}
	}
}

func TestShortSecretIsNoSecret(t *testing.T) {
	s := New("", "abc", "1234567")
	if got := s.String("abc 1234567"); got != "abc 1234567" || Protects("1234567") || !Protects("12345678") {
		t.Errorf("got %q", got)
	}
}

// pieces is a source that returns one part in each read.
type pieces []string

func (p *pieces) Read(b []byte) (int, error) {
	if len(*p) == 0 {
		return 0, io.EOF
	}
	n := copy(b, (*p)[0])
	*p = (*p)[1:]
	return n, nil
}

// A stream shows at once what cannot begin a secret.
func TestStreamStaysLive(t *testing.T) {
	for _, c := range []struct{ sent, want pieces }{
		{pieces{"data: {\"n\":1}\n\n", "data: hello\n\n"}, pieces{"data: {\"n\":1}\n\n", "data: hello\n\n"}},
		{pieces{"a line of a log\n", "100%\n", "\\\n", "R&D\r\n"}, pieces{"a line of a log\n", "100%\n", "\\\n", "R&D\r\n"}},
		{pieces{"data: " + token[:10], token[10:] + "\n\n"}, pieces{"data: ", strings.Repeat("*", len(token)) + "\n\n"}},
		{pieces{"data: " + token[:10], "!\n"}, pieces{"data: ", token[:10] + "!\n"}},
		{pieces{"data: " + token[:4] + "%", "41", "!\n"}, pieces{"data: ", token[:4], "%41!\n"}},
		{pieces{token[:5], token[5:9], token[9:], "x"}, pieces{strings.Repeat("*", len(token)), "x"}},
	} {
		r := New(token).Reader(io.NopCloser(&c.sent))
		var got pieces
		for buf := make([]byte, 1000); ; {
			n, err := r.Read(buf)
			if err == io.EOF {
				break
			}
			got = append(got, string(buf[:n]))
		}
		if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", c.want) {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

// A token of several parts is removed from wrapped text, and a header from which a line
// break became a space (RFC 9112, section 5.2) at each place.
func TestWrappedTokensAreRemoved(t *testing.T) {
	const secret = "hvs.CAESIJ9q7Zk_M2x9RtUwYbN4cLdJ-fGs~AbT0pWmEo5KvXh8QnUy3Rz"
	s := New(secret)
	text := egresstest.Wrap("Bearer "+secret, 40, "\r\n ")
	got, err := io.ReadAll(s.Reader(io.NopCloser(strings.NewReader(text))))
	if want := egresstest.Wrap("Bearer "+strings.Repeat("*", len(secret)), 40, "\r\n*"); err != nil || string(got) != want {
		t.Errorf("body: got %q, %v; want %q", got, err, want)
	}
	for n := 1; n < len(secret); n++ {
		if got := s.String("Bearer " + secret[:n] + " " + secret[n:] + " end"); got != "Bearer "+strings.Repeat("*", len(secret)+1)+" end" {
			t.Errorf("header: got %q", got)
		}
	}
}

// A body that ends or begins within a secret shows less than MinLength bytes of it.
func TestCutSecretIsMasked(t *testing.T) {
	s := New(token)
	for n := MinLength; n < len(token); n++ {
		for _, form := range []func(string) string{func(s string) string { return s }, inJSON, func(s string) string { return egresstest.Escape(s, "%%%02x", 2) }} {
			got, err := io.ReadAll(s.Reader(io.NopCloser(strings.NewReader("end " + form(token[:n])))))
			if err != nil || strings.Trim(string(got[4:]), "*") != "" {
				t.Errorf("end: got %q, %v", got, err)
			}
			resp := &http.Response{StatusCode: 206, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(form(token[len(token)-n:]) + " start")), ContentLength: -1}
			if err := s.Response(resp); err != nil {
				t.Fatal(err)
			}
			got, err = io.ReadAll(resp.Body)
			if err != nil || strings.Trim(string(got[:len(got)-6]), "*") != "" {
				t.Errorf("start: got %q, %v", got, err)
			}
		}
	}
}

func TestPrivateKeyIsRemovedLineByLine(t *testing.T) {
	der := bytes.Repeat([]byte{1, 2, 3, 250, 251}, 30)
	for i := range der {
		der[i] += byte(i * 7)
	}
	body := egresstest.Wrap(b64(string(der)), 64, "\n")
	key := "-----BEGIN PRIVATE KEY-----\n" + body + "\n-----END PRIVATE KEY-----\n"
	s := New(key)
	for _, text := range []string{key, strings.ReplaceAll(key, "\n", "\r\n"), inJSON(key), b64(string(der)), egresstest.Wrap(b64(string(der)), 76, "\r\n"), strings.Split(key, "\n")[2]} {
		got := s.String(text)
		if strings.Count(got, "*") < 64 || strings.Contains(got, b64(string(der))[10:30]) {
			t.Errorf("got %q", got)
		}
	}
}

func TestSignatureOfTokenIsSecret(t *testing.T) {
	s := New("eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg")
	if got := s.String(`{"signature":"c2lnbmF0dXJlLW9mLXRoZS10b2tlbg","header":"eyJhbGciOiJFZERTQSJ9"}`); strings.Contains(got, "c2ln") || !strings.Contains(got, "eyJhbGciOiJFZERTQSJ9") {
		t.Errorf("got %s", got)
	}
}

func TestSecretsOfCredential(t *testing.T) {
	for _, c := range []struct {
		kind   string
		secret api.Secret
		want   string
	}{
		{"bearer", api.Secret{"token": "t"}, "[t]"},
		{"vault", api.Secret{"token": "t"}, "[t]"},
		{"aws", api.Secret{"access_key_id": "i", "secret_access_key": "k", "session_token": "t"}, "[k t]"},
		{"userpass", api.Secret{"username": "u", "password": "p"}, "[p]"},
		{"certificate", api.Secret{"certificate": "c", "private_key": "k", "chain": "h"}, "[k]"},
		{"data", api.Secret{"username": "u", "value": "v", "other": "o"}, "[o v]"},
		{"unknown", api.Secret{"username": "u"}, "[u]"},
	} {
		if got := fmt.Sprint(Secrets(&api.Credential{Type: c.kind, Secret: c.secret})); got != c.want {
			t.Errorf("%s: got %s, want %s", c.kind, got, c.want)
		}
	}
	if got := fmt.Sprintf("%v %+v %#v", New(token), New(token), New(token)); strings.Contains(got, "ghp") {
		t.Errorf("got %s", got)
	}
}

// A stream is searched for the secrets that are known when its bytes arrive.
func TestFollowing(t *testing.T) {
	current := New()
	s := Following(func() *Scrubber { return current })
	in := pieces{token + "\n", token + "\n"}
	r := s.Reader(io.NopCloser(&in))
	var got []string
	for buf := make([]byte, 1000); ; {
		n, err := r.Read(buf)
		if err == io.EOF {
			break
		}
		got = append(got, string(buf[:n]))
		current = current.With(token)
	}
	if len(got) != 2 || got[0] != token+"\n" || got[1] != strings.Repeat("*", len(token))+"\n" || s.String(token) == token {
		t.Errorf("got %q", got)
	}
}

func TestManySecrets(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	var secrets []string
	for range 20 {
		secrets = append(secrets, random(r, 8+r.IntN(60)))
	}
	s := New(secrets[:10]...).With(secrets[10:]...)
	text := strings.Join(secrets, "\n")
	if got := s.String(text); strings.Trim(got, "*\n") != "" {
		t.Errorf("got %q", got)
	}
}

func random(r *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.+/"[r.IntN(67)]
	}
	return string(b)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
