package brokertest

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// BenchmarkDelegatedToken compares the exchange of a person's token, on which policy decides
// twice, with one for the caller itself, in alternating rounds: a reserved access token, which
// serves many exchanges, and an ID-JAG, which serves one.
func BenchmarkDelegatedToken(b *testing.B) {
	for _, kind := range []string{api.TokenTypeAccessToken, api.TokenTypeIDJAG} {
		_, name, _ := strings.Cut(kind, "token-type:")
		b.Run(name, func(b *testing.B) {
			n := max(b.N/benchRounds/2, benchClients)
			d := newDelegating(b)
			clients := d.connect(b, false)
			plain := d.delegatedAsks(b, benchClients, "")
			run(b, clients, plain, benchTokens) // the broker remembers the SVIDs from now on
			compareRounds(b, "delegated/plain", func() { run(b, clients, plain, n) }, func() func() {
				count := benchClients
				if kind == api.TokenTypeIDJAG {
					count = n
				}
				delegated := d.delegatedAsks(b, count, kind)
				return func() { run(b, clients, delegated, n) }
			})
		})
	}
}

// delegatedAsks returns n requests for a token, by 64 workloads: on behalf of Ana with a token
// of a kind, or for the caller itself.
func (d *delegating) delegatedAsks(b *testing.B, n int, kind string) (list [][]byte) {
	b.Helper()
	svids := make([]string, benchClients)
	for i := range svids {
		token, err := d.CA.JWTSVID(fmt.Sprintf("%s/%d", Agent, i), 5*time.Minute, d.URL)
		d.must(err)
		svids[i] = token
	}
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
