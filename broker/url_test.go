package broker

import (
	"net/url"
	"strings"
	"testing"
)

func TestNormalURL(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"https://broker.acme.test":             "https://broker.acme.test",
		"https://broker.acme.test/":            "https://broker.acme.test",
		"https://broker.acme.test:443":         "https://broker.acme.test",
		"https://broker.acme.test:0443/":       "https://broker.acme.test",
		"https://broker.acme.test:":            "https://broker.acme.test",
		"HTTPS://Broker.ACME.test":             "https://broker.acme.test",
		"https://broker.acme.test:8443/Broker": "https://broker.acme.test:8443/Broker",
		"https://broker.acme.test:80":          "https://broker.acme.test:80",
		"https://broker.acme.test/a/b/":        "https://broker.acme.test/a/b",
		"https://xn--brker-kua.acme.test":      "https://xn--brker-kua.acme.test",
		"https://127.0.0.1:8443":               "https://127.0.0.1:8443",
		"https://[2001:DB8:0::1]:443":          "https://[2001:db8::1]",
		"http://localhost:80":                  "http://localhost",
		"http://localhost:443":                 "http://localhost:443",
	} {
		u, err := NormalURL(text)
		if err != nil || u.String() != want {
			t.Errorf("%s: got %v, %v, want %s", text, u, err, want)
			continue
		}
		if again, err := NormalURL(u.String()); err != nil || *again != *u {
			t.Errorf("%s: read again as %v, %v", u, again, err)
		}
	}
	for _, text := range []string{
		"", "broker.acme.test", "broker.acme.test:443", "//broker.acme.test", "ftp://broker.acme.test", "https:", "https://", "https:///x", "https:broker.acme.test",
		"https://ana@broker.acme.test", "https://ana:x@broker.acme.test", "https://@broker.acme.test",
		"https://broker.acme.test?", "https://broker.acme.test?a=b", "https://broker.acme.test#", "https://broker.acme.test#a",
		"https://broker.acme.test.", "https://broker..acme.test", "https://.acme.test", "https://bröker.acme.test", "https://br%C3%B6ker.acme.test", "https://broker.acme.test%2e", "https://-a.test", "https://a-.test", "https://a b.test", "https://a*.test",
		"https://" + strings.Repeat("a", 64) + ".test", "https://127.1", "https://0x7f.0.0.1", "https://2130706433", "https://127.0.0.01", "https://a.0x1", "https://[fe80::1%25eth0]", "https://[::ffff:127.0.0.1]", "https://[::ffff:7f00:1]", "https://[::1",
		"https://broker.acme.test:0", "https://broker.acme.test:65536", "https://broker.acme.test:x", "https://broker.acme.test:-1", "https://broker.acme.test:+443",
		"https://broker.acme.test//", "https://broker.acme.test/a//b", "https://broker.acme.test/./a", "https://broker.acme.test/a/../b", "https://broker.acme.test/%61", "https://broker.acme.test/a%2Fb", "https://broker.acme.test/ä", "https://broker.acme.test/a b",
	} {
		if u, err := NormalURL(text); err == nil {
			t.Errorf("%s: got %s, want an error", text, u)
		}
	}
}

func TestOrigin(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"https://Broker.acme.test:443/x": "https://broker.acme.test", "http://localhost:8080/": "http://localhost:8080"} {
		u, err := NormalURL(text)
		if err != nil || Origin(u) != want {
			t.Errorf("%s: got %v, %v, want %s", text, u, err, want)
		}
	}
}

// FuzzNormalURL checks that a normal URL has one spelling, in which net/url reads the
// same host.
func FuzzNormalURL(f *testing.F) {
	for _, seed := range []string{"https://Broker.acme.test:443/a/", "http://[::1]:80", "https://a@b", "https://a/%2e", "https://1.2.3", "https://a#", "https://ä"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := NormalURL(text)
		if err != nil {
			return
		}
		again, err := NormalURL(u.String())
		if err != nil || again.String() != u.String() {
			t.Fatalf("%q: got %s, read again as %v, %v", text, u, again, err)
		}
		plain, err := url.Parse(text)
		if err != nil || !strings.EqualFold(plain.Scheme, u.Scheme) || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Host != strings.ToLower(u.Host) {
			t.Fatalf("%q: got %s", text, u)
		}
	})
}
