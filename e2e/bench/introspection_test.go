package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"testing"
	"time"
)

// BenchmarkIntrospection alternates issuing tokens and introspecting them as a resource
// server, and reports ratios. At the end it revokes a token and introspects it.
func BenchmarkIntrospection(b *testing.B) {
	k := newKit(b)
	issuing := k.startBroker("broker")
	introspecting := *issuing
	introspecting.requests = k.introspections(issuing)
	k.load(byToken(issuing), clients, warmUp)
	k.load(byToken(&introspecting), clients, warmUp)
	var rates, cpu []float64
	b.Logf("%-6s %28s %28s %8s", "round", "issued: tokens/s CPU/1000 p99", "introspected: /s CPU/1000 p99", "rate")
	b.ResetTimer()
	for i := range rounds {
		issued, read := k.load(byToken(issuing), clients, roundTime), k.load(byToken(&introspecting), clients, roundTime)
		rates, cpu = append(rates, read.rate()/issued.rate()), append(cpu, read.perThousand())
		b.Logf("%-6d %12.0f %7.3f %8s %12.0f %7.3f %8s %8.2f", i+1, issued.rate(), issued.perThousand(), issued.at(0.99).Round(100*time.Microsecond),
			read.rate(), read.perThousand(), read.at(0.99).Round(100*time.Microsecond), rates[i])
	}
	b.StopTimer()
	b.Logf("medians: %.2f times the rate of issuing (target 3 or more), %.3f CPU s per 1,000 (target 0.15 or less)", median(rates), median(cpu))
	b.ReportMetric(median(rates), "rate/issuing")
	b.ReportMetric(median(cpu), "CPU-s/1000")
	k.count(b, issuing)
}

// introspections issues a token to each identity and returns the requests of a resource
// server that introspects them. It checks that a revoked token is inactive at once.
func (k *kit) introspections(t *target) (requests [][]byte) {
	k.b.Helper()
	c := &connection{k: k, address: t.address}
	defer c.close()
	ask := func(request []byte) []byte {
		k.b.Helper()
		answer, err := c.exchange(request)
		if err != nil {
			k.b.Fatal(err)
		}
		return answer
	}
	claims := fmt.Sprintf(`{"sub":"spiffe://acme.test/tickets","aud":[%q],"exp":%d,"iat":%d}`, k.issuer, time.Now().Add(55*time.Minute).Unix(), time.Now().Unix())
	server, err := signES256(k.key, `{"alg":"ES256","kid":"k1","typ":"JWT"}`, claims)
	if err != nil {
		k.b.Fatal(err)
	}
	post := func(path, bearer, token string) []byte {
		form := url.Values{"token": {token}}.Encode()
		return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s",
			path, t.address, bearer, len(form), form)
	}
	for i, request := range t.requests {
		var issued struct {
			Token string `json:"access_token"`
		}
		if err := json.Unmarshal(ask(request), &issued); err != nil || issued.Token == "" {
			k.b.Fatalf("the answer holds no token: %v", err)
		}
		t.answered++
		introspection := post("/oauth2/introspect", server, issued.Token)
		if i > 0 {
			requests = append(requests, introspection)
			continue
		}
		if answer := ask(introspection); !bytes.Contains(answer, []byte(`"active":true`)) {
			k.b.Fatalf("a new token is introspected as %s", answer)
		}
		ask(post("/oauth2/revoke", k.tokens[0], issued.Token))
		if answer := ask(introspection); !bytes.Contains(answer, []byte(`"active":false`)) {
			k.b.Fatalf("a revoked token is introspected as %s", answer)
		}
	}
	return append(requests, requests[0])
}
