package broker_test

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"accessbroker.internal/broker"
)

func TestParseSPIFFEID(t *testing.T) {
	long := strings.Repeat("a", 255)
	path := strings.Repeat("/"+strings.Repeat("p", 255), 7) // 1792 bytes
	rest := strings.Repeat("x", 2048-len("spiffe://acme.test")-len(path)-1)
	for id, want := range map[string]string{
		"spiffe://acme.test":                              "acme.test|",
		"spiffe://acme.test/agent/triage":                 "acme.test|agent/triage",
		"spiffe://a/b":                                    "a|b",
		"spiffe://acme-1_x.test/A.b-C_9/...":              "acme-1_x.test|A.b-C_9/...",
		"spiffe://" + long + "/a":                         long + "|a",
		"spiffe://acme.test" + path + "/" + rest:          "acme.test|" + path[1:] + "/" + rest,
		"":                                                "must start with spiffe://",
		"acme.test/agent":                                 "must start with spiffe://",
		"SPIFFE://acme.test/agent":                        "must start with spiffe://",
		"https://acme.test/agent":                         "must start with spiffe://",
		" spiffe://acme.test/agent":                       "must start with spiffe://",
		"spiffe://":                                       "1 to 255 bytes",
		"spiffe:///agent":                                 "1 to 255 bytes",
		"spiffe://" + long + "a/a":                        "1 to 255 bytes",
		"spiffe://ACME.test/agent":                        "lower case",
		"spiffe://acme.test:8443/agent":                   "not a trust domain",
		"spiffe://ana@acme.test/agent":                    "not a trust domain",
		"spiffe://acme.test?x/agent":                      "not a trust domain",
		"spiffe://äcme.test/agent":                        "not a trust domain",
		"spiffe://acme.test/":                             "empty segment",
		"spiffe://acme.test/agent/":                       "empty segment",
		"spiffe://acme.test//agent":                       "empty segment",
		"spiffe://acme.test/agent//x":                     "empty segment",
		"spiffe://acme.test/./agent":                      "'.' or '..'",
		"spiffe://acme.test/agent/..":                     "'.' or '..'",
		"spiffe://acme.test/agent/*":                      "no wildcards",
		"spiffe://acme.test/agent/tri*":                   "no wildcards",
		"spiffe://acme.test/agent/%62ench":                "no percent-encoding",
		"spiffe://acme.test/agent?x":                      "a-z, A-Z, 0-9",
		"spiffe://acme.test/agent#x":                      "a-z, A-Z, 0-9",
		"spiffe://acme.test/agent x":                      "a-z, A-Z, 0-9",
		"spiffe://acme.test/agent\n":                      "a-z, A-Z, 0-9",
		"spiffe://acme.test/agënt":                        "a-z, A-Z, 0-9",
		"spiffe://acme.test" + path + "/x" + rest:         "2048 bytes",
		"spiffe://acme.test/" + strings.Repeat("x", 5000): "2048 bytes",
	} {
		domain, got, err := broker.ParseSPIFFEID(id)
		if err != nil {
			if domain+got != "" || !strings.Contains(err.Error(), want) || len(err.Error()) > 500 {
				t.Errorf("%q: got %q, %q, %v; want an error with %q", id, domain, got, err, want)
			}
			continue
		}
		if domain+"|"+got != want {
			t.Errorf("%q: got %q and %q, want %q", id, domain, got, want)
		}
	}
}

// go-spiffe reads the same IDs in the same way, apart from their length.
func FuzzParseSPIFFEID(f *testing.F) {
	for _, seed := range []string{
		"spiffe://acme.test/agent/triage", "spiffe://acme.test", "spiffe://acme.test/", "spiffe://a//b", "spiffe://a/./b", "spiffe://A/b", "spiffe://a/%61", "spiffe://a/b/", "x",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, id string) {
		domain, path, err := broker.ParseSPIFFEID(id)
		other, otherErr := spiffeid.FromString(id)
		tooLong := len(id) > 2048 || len(other.TrustDomain().Name()) > 255
		if (err == nil) != (otherErr == nil && !tooLong) {
			t.Fatalf("%q: got %v, go-spiffe has %v", id, err, otherErr)
		}
		if err == nil && (domain != other.TrustDomain().Name() || path != strings.TrimPrefix(other.Path(), "/")) {
			t.Errorf("%q: got %q and %q, go-spiffe has %q and %q", id, domain, path, other.TrustDomain().Name(), other.Path())
		}
		if err == nil {
			paths := broker.SPIFFEPaths(id)
			if (len(paths) > 0) != (path != "") || path != "" && paths[0] != id {
				t.Errorf("the paths of %q: got %q", id, paths)
			}
		}
	})
}

func TestParsePerson(t *testing.T) {
	for id, want := range map[string]string{
		"login/ana":                         "login|ana",
		"corp-2/a/b:c@d":                    "corp-2|a/b:c@d",
		"login/" + strings.Repeat("s", 255): "login|" + strings.Repeat("s", 255),
		"":                                  "not a person",
		"ana":                               "not a person",
		"login/":                            "subject",
		"/ana":                              "provider name",
		"Login/ana":                         "provider name",
		"2login/ana":                        "provider name",
		"login.test/ana":                    "provider name",
		"spiffe://acme.test/agent":          "not a person",
		"acme.test/agent":                   "provider name",
		"login/ana b":                       "subject",
		"login/anä":                         "subject",
		"login/ana\n":                       "subject",
		"login/" + strings.Repeat("s", 256): "subject",
		strings.Repeat("p", 33) + "/ana":    "provider name",
	} {
		provider, subject, err := broker.ParsePerson(id)
		if got := provider + "|" + subject; err == nil && got != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %q, %v; want %q", id, got, err, want)
		}
	}
}

func TestNearest(t *testing.T) {
	keys := []string{"server", "store", "kind", "tls", "spiffe://acme.test/agent", "acme.test"}
	for word, want := range map[string]string{
		"servr": "server", "sevrer": "server", "Kind": "kind", "stroe": "store", "wholly": "", "x": "", "": "",
		"spiffe://acme.test/agnet": "spiffe://acme.test/agent", "acme.tst": "acme.test", "spiffe://other.example/x": "",
		strings.Repeat("a", 10_000): "",
	} {
		if got := broker.Nearest(word, keys); got != want {
			t.Errorf("nearest to %q: got %q, want %q", word, got, want)
		}
	}
}
