package bench

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The size of a full synchronization, and how the provider's client calls.
const (
	scimUsers       = 100_000
	scimGroups      = 10_000
	scimMembers     = 10 // of each group
	scimConnections = 8
	scimIssuing     = 16 // clients that get tokens meanwhile
	scimOffered     = 1000
)

// BenchmarkSCIMSync provisions a whole directory while tokens are issued at a steady rate,
// and compares that rate with the one before. SCIM_USERS makes it smaller.
func BenchmarkSCIMSync(b *testing.B) {
	users := scimUsers
	if text := os.Getenv("SCIM_USERS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			b.Fatal(err)
		}
		users = n
	}
	groups := users * scimGroups / scimUsers
	k := newKit(b)
	k.write("login.secret", []byte("secret"))
	k.server = "  admin_socket: admin.sock\n"
	k.people = "  people: {login: {issuer: \"http://127.0.0.1:1\", client_id: broker, client_secret_file: ../login.secret}}\n"
	k.entitlements = "scim: {corp: {provider: login, subject: externalId, stale_after: 24h}}\n"
	t := k.startBroker("broker")
	c := k.provisioner(t)
	k.load(byToken(t), scimIssuing, warmUp)
	before := k.steady(t, scimOffered, 10*time.Second, nil)
	start := time.Now()
	cpu := cpuTime(b, t.cmd.Process.Pid)
	done := make(chan struct{})
	var took time.Duration
	go func() {
		defer close(done)
		c.sync(users, groups)
		took = time.Since(start)
	}()
	during := k.steady(t, scimOffered, time.Hour, done)
	<-done
	cost := cpuTime(b, t.cmd.Process.Pid) - cpu
	b.Logf("%d users and %d groups of %d members in %s, %.0f calls/s, %d of them repeated after 429 (target: 5 min or less)", users, groups, scimMembers, took.Round(time.Second), float64(users+groups)/took.Seconds(), c.slowed.Load())
	b.Logf("issuing %.0f tokens/s before (p99 %s), %.0f during (p99 %s): %.2f of it (target 0.90 or more)", before.rate(), before.at(0.99), during.rate(), during.at(0.99), during.rate()/before.rate())
	b.Logf("the broker used %.0f ms of CPU per 1000 calls and tokens; resident memory %d MB", cost.Seconds()*1e6/float64(users+groups+during.tokens), k.memory(t)>>20)
	b.ReportMetric(took.Seconds(), "s")
	b.ReportMetric(during.rate()/before.rate(), "issuing-kept")
	k.count(b, t)
}

// steady requests tokens at a rate, for a time or until done is closed. The rate is that of
// the answers.
func (k *kit) steady(t *target, perSecond int, d time.Duration, done <-chan struct{}) result {
	k.b.Helper()
	start := time.Now()
	stop := start.Add(d)
	latencies := make([][]time.Duration, scimIssuing)
	var all sync.WaitGroup
	var next atomic.Int64
	request := remembered(t)
	for i := range scimIssuing {
		all.Go(func() {
			conn := &connection{k: k, address: t.address}
			defer conn.close()
			for n := 0; ; n++ {
				due := start.Add(time.Duration(next.Add(1)) * time.Second / time.Duration(perSecond))
				if due.After(stop) {
					return
				}
				time.Sleep(time.Until(due))
				select {
				case <-done:
					return
				default:
				}
				began := time.Now()
				if _, err := conn.exchange(request(i, scimIssuing, n)); err != nil {
					k.b.Error(err)
					return
				}
				latencies[i] = append(latencies[i], time.Since(began))
			}
		})
	}
	all.Wait()
	return k.merge(t, latencies, time.Since(start))
}

// A provisioner is the client of a provider's directory.
type provisioner struct {
	k      *kit
	http   *http.Client
	url    string
	token  string
	slowed atomic.Int64
}

func (k *kit) provisioner(t *target) *provisioner {
	k.b.Helper()
	out, err := exec.Command(k.broker, "scim", "token", "corp", "--admin-socket", filepath.Join(k.dir, "broker", "admin.sock"), "-o", "json").CombinedOutput()
	var made struct{ Token string }
	if err == nil {
		err = json.Unmarshal(out, &made)
	}
	if err != nil {
		k.b.Fatalf("signing a token: %v\n%s", err, out)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: k.pool}, MaxIdleConnsPerHost: scimConnections}
	return &provisioner{k: k, http: &http.Client{Transport: transport}, url: "https://" + t.address + "/scim/v2", token: made.Token}
}

// sync creates all users, and then all groups with their members.
func (p *provisioner) sync(users, groups int) {
	ids := make([]string, users)
	p.each(users, func(i int) {
		body := fmt.Sprintf(`{"schemas":["urn:ietf:params:scim:schemas:core:2.0:User","urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"],"externalId":"p%[1]d","userName":"person%[1]d@acme.test","active":true,"displayName":"Person %[1]d","name":{"givenName":"Person","familyName":"Number %[1]d"},"emails":[{"primary":true,"type":"work","value":"person%[1]d@acme.test"}],"title":"Engineer","urn:ietf:params:scim:schemas:extension:enterprise:2.0:User":{"department":"Department %[2]d","employeeNumber":"%[1]d"}}`, i, i%100)
		ids[i] = p.post("/Users", body)
	})
	p.each(groups, func(i int) {
		var members bytes.Buffer
		for m := range scimMembers {
			fmt.Fprintf(&members, `,{"value":%q}`, ids[(i*scimMembers+m*7919)%users])
		}
		p.post("/Groups", fmt.Sprintf(`{"schemas":["urn:ietf:params:scim:schemas:core:2.0:Group"],"externalId":"g%[1]d","displayName":"Group %[1]d","members":[%s]}`, i, members.Bytes()[1:]))
	})
}

func (p *provisioner) each(n int, f func(i int)) {
	var all sync.WaitGroup
	var next atomic.Int64
	for range scimConnections {
		all.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || p.k.b.Failed() {
					return
				}
				f(i)
			}
		})
	}
	all.Wait()
}

// post creates a resource and returns its id. Like the providers, it waits when the broker
// asks for it.
func (p *provisioner) post(path, body string) string {
	for {
		req, err := http.NewRequest(http.MethodPost, p.url+path, bytes.NewReader([]byte(body)))
		if err != nil {
			p.k.b.Error(err)
			return ""
		}
		req.Header.Set("Authorization", "Bearer "+p.token)
		req.Header.Set("Content-Type", "application/scim+json")
		resp, err := p.http.Do(req)
		if err != nil {
			p.k.b.Error(err)
			return ""
		}
		text, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		var made struct{ ID string }
		switch {
		case err == nil && resp.StatusCode == http.StatusTooManyRequests:
			p.slowed.Add(1)
			time.Sleep(time.Second)
			continue
		case err == nil:
			err = json.Unmarshal(text, &made)
		}
		if err != nil || resp.StatusCode != http.StatusCreated {
			p.k.b.Errorf("POST %s: %s %v\n%s", path, resp.Status, err, text)
		}
		return made.ID
	}
}
