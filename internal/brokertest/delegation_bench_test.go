package brokertest

import (
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"accessbroker.internal/api"
)

// BenchmarkDelegatedToken compares the exchange of a person's token, on which policy decides
// twice, with one for the caller itself. A reserved access token serves many exchanges, so it
// is compared with an SVID that does. An ID-JAG serves one, so that its signature is verified
// each time: it is also compared with an SVID that the broker has not seen. Providers sign
// with RS256 by default (OpenID Connect Core 1.0, section 15.1).
//
//	go test ./internal/brokertest -run '^$' -bench DelegatedToken -benchtime 20000x
func BenchmarkDelegatedToken(b *testing.B) {
	for _, test := range []struct {
		name, kind string
		algorithm  jose.SignatureAlgorithm
	}{
		{"access_token", api.TokenTypeAccessToken, jose.RS256},
		{"id-jag", api.TokenTypeIDJAG, jose.RS256},
		{"id-jag-ES256", api.TokenTypeIDJAG, jose.ES256},
	} {
		b.Run(test.name, func(b *testing.B) {
			n := max(b.N/benchRounds/2, benchClients)
			d := newDelegating(b)
			if test.algorithm == jose.RS256 {
				key, err := rsa.GenerateKey(rand.Reader, 2048)
				d.must(err)
				d.p.key, d.p.algorithm = key, jose.RS256
			}
			clients := d.connect(b, false)
			svids := d.svids(benchClients)
			asks := func(list [][]byte) func() { return func() { run(b, clients, list, n) } }
			plain := d.delegatedAsks(svids, benchClients, "")
			run(b, clients, plain, benchTokens) // the broker remembers the SVIDs from now on
			remembered := baseline{name: "plain", once: asks(plain)}
			if test.kind == api.TokenTypeAccessToken {
				delegated := d.delegatedAsks(svids, benchClients, test.kind)
				run(b, clients, delegated, benchClients) // and the person's tokens
				compareRounds(b, "delegated", func() func() { return asks(delegated) }, remembered)
				return
			}
			fresh := baseline{name: "fresh", each: func() func() { return asks(d.delegatedAsks(d.svids(n), n, "")) }}
			compareRounds(b, "delegated", func() func() { return asks(d.delegatedAsks(svids, n, test.kind)) }, remembered, fresh)
		})
	}
}

// svids returns n JWT-SVIDs of 64 workloads. No two are equal.
func (d *delegating) svids(n int) (list []string) {
	for i := range n {
		token, err := d.CA.JWTSVID(fmt.Sprintf("%s/%d", Agent, i%benchClients), 5*time.Minute+time.Duration(i/benchClients)*time.Second, d.URL)
		d.must(err)
		list = append(list, token)
	}
	return list
}

// delegatedAsks returns n requests for a token by the workloads: on behalf of Ana with a
// token of a kind, or for the caller itself.
func (d *delegating) delegatedAsks(svids []string, n int, kind string) (list [][]byte) {
	for i := range n {
		form := url.Values{"grant_type": {"client_credentials"}, "audience": {"tickets-api"}, "scope": {"tickets:read"}}
		switch kind {
		case api.TokenTypeAccessToken:
			form = exchangeForm(d.accessToken(nil), kind)
		case api.TokenTypeIDJAG:
			form = exchangeForm(d.idJAG(nil), kind)
		}
		body := form.Encode()
		list = append(list, fmt.Appendf(nil, "POST /oauth2/token HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s",
			strings.TrimPrefix(d.URL, "https://"), svids[i%len(svids)], len(body), body))
	}
	return list
}
