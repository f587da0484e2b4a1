package aws

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/issuertest"
)

// A fakeIAM keeps inline policies of roles, as IAM's query protocol does.
type fakeIAM struct {
	t   *testing.T
	url string

	mu       sync.Mutex
	refuse   http.HandlerFunc
	policies map[string]string // by "role/name"
	puts     int
}

func newFakeIAM(t *testing.T) *fakeIAM {
	f := &fakeIAM{t: t, policies: map[string]string{}}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	f.url = s.URL
	return f
}

func (f *fakeIAM) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil || !strings.Contains(r.Header.Get("Authorization"), "/iam/aws4_request") {
		f.t.Errorf("an unsigned call, or %v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		f.refuse(w, r)
		return
	}
	key, action := r.PostForm.Get("RoleName")+"/"+r.PostForm.Get("PolicyName"), r.PostForm.Get("Action")
	document, there := f.policies[key]
	result := ""
	switch {
	case action == "PutRolePolicy":
		f.policies[key] = r.PostForm.Get("PolicyDocument")
		f.puts++
	case !there:
		stsError(404, "NoSuchEntity", "no")(w, r)
		return
	case action == "DeleteRolePolicy":
		delete(f.policies, key)
	case action == "GetRolePolicy":
		result = fmt.Sprintf("<GetRolePolicyResult><RoleName>r</RoleName><PolicyName>n</PolicyName><PolicyDocument>%s</PolicyDocument></GetRolePolicyResult>", url.QueryEscape(document))
	default:
		f.t.Errorf("a call of %s", action)
	}
	fmt.Fprintf(w, `<%[1]sResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/">%[2]s<ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></%[1]sResponse>`, action, result)
}

// revocable makes an issuer whose sessions can be denied, and a lease of it
// that is being revoked.
func revocable(t *testing.T, deny Deny) (*Issuer, *fakeIAM, *fakeSTS, broker.Lease) {
	t.Helper()
	f, iam := newFakeSTS(t), newFakeIAM(t)
	cfg := f.byAssertion(t).cfg
	cfg.Revoker, cfg.IAMEndpoint = "arn:aws:iam::123456789012:role/revoker", iam.url
	now := issuertest.Noon
	cfg.Now = func() time.Time { return now }
	a := newTestAWS(t, cfg)
	o := awsOrder(t, a)
	role, e := reportsRole()
	role.Revoke = deny
	e.Spec = compileAWS(t, a.cfg, role, e)
	o.Entitlement = e
	prepared, err := a.Prepare(t.Context(), o)
	if err != nil || len(prepared.Handle) == 0 {
		t.Fatalf("prepared: %q, %v", prepared.Handle, err)
	}
	l := o.Lease
	l.Handle, l.EndHow, l.Opened = prepared.Handle, broker.EndRevoked, issuertest.Noon
	a.cfg.Now = func() time.Time { return now }
	return a, iam, f, l
}

func TestAWSDeniesASession(t *testing.T) {
	a, iam, f, l := revocable(t, DenySession)
	returned := l
	returned.EndHow = broker.EndReturned
	if err := a.Revoke(t.Context(), returned); !errors.Is(err, broker.ErrNotRevocable) || iam.puts != 0 {
		t.Errorf("given back: %v, %d policies", err, iam.puts)
	}
	for range 2 { // the second is a try after a lost answer
		if err := a.Revoke(t.Context(), l); !errors.Is(err, broker.ErrQueued) {
			t.Fatalf("revoked: %v", err)
		}
	}
	want := `{"Statement":[{"Action":"*","Condition":{"StringLike":{"aws:userid":"*:` + l.ID.String() + `"}},"Effect":"Deny","Resource":"*"}],"Version":"2012-10-17"}`
	name := "reports/" + awsDenyPrefix + l.ID.String()
	if len(iam.policies) != 1 || iam.policies[name] != want {
		t.Errorf("IAM has %v", iam.policies)
	}
	// The broker is not the entitlement's, but its own.
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(f.calls[0].form.Get("WebIdentityToken"), ".")[1])
	var claims struct {
		Sub string `json:"sub"`
	}
	if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Sub != "revoker" {
		t.Errorf("the assertion's sub is %q", claims.Sub)
	}
	// When time has ended the session, nothing is left to deny.
	a.cfg.Now = func() time.Time { return l.Expires }
	f.clock = a.cfg.Now
	l.EndAsked = issuertest.Noon
	if err := a.Revoke(t.Context(), l); !errors.Is(err, broker.ErrNotRevocable) || len(iam.policies) != 0 {
		t.Errorf("after its end: %v, IAM has %v", err, iam.policies)
	}
}

// A denial that outlives its session takes a place that the next one needs: it
// is taken away again and again until it is gone.
func TestAWSTakesADenialAway(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		want   error
	}{
		{400, "Throttling", broker.ErrIssuerUnavailable},
		{503, "ServiceUnavailable", broker.ErrIssuerUnavailable},
		{403, "AccessDenied", broker.ErrIssuerRefused}, // an operator can repair that
		{404, "NoSuchEntity", broker.ErrNotRevocable},  // the role may be gone as well
	} {
		a, iam, f, l := revocable(t, DenySession)
		if err := a.Revoke(t.Context(), l); !errors.Is(err, broker.ErrQueued) || len(iam.policies) != 1 {
			t.Fatalf("revoked: %v, IAM has %v", err, iam.policies)
		}
		a.cfg.Now = func() time.Time { return l.Expires }
		f.clock = a.cfg.Now
		l.EndAsked = issuertest.Noon
		iam.refuse = stsError(c.status, c.code, "no")
		if err := a.Revoke(t.Context(), l); !errors.Is(err, c.want) || c.want != broker.ErrNotRevocable && errors.Is(err, broker.ErrNotRevocable) {
			t.Errorf("%s: %v", c.code, err)
		}
		iam.refuse = nil
		for range 2 { // the second is a try after a lost answer
			if err := a.Revoke(t.Context(), l); !errors.Is(err, broker.ErrNotRevocable) || len(iam.policies) != 0 {
				t.Errorf("after %s: %v, IAM has %v", c.code, err, iam.policies)
			}
		}
	}
}

// One policy denies all sessions of the role from before; those that are
// revoked with it need no other.
func TestAWSDeniesARole(t *testing.T) {
	a, iam, f, l := revocable(t, DenyRole)
	at := issuertest.Noon.Add(10 * time.Minute)
	a.cfg.Now = func() time.Time { return at }
	f.clock = a.cfg.Now
	for range 3 {
		if err := a.Revoke(t.Context(), l); !errors.Is(err, broker.ErrQueued) {
			t.Fatalf("revoked: %v", err)
		}
	}
	want := `{"Statement":[{"Action":"*","Condition":{"DateLessThan":{"aws:TokenIssueTime":"` + at.Format(time.RFC3339) + `"}},"Effect":"Deny","Resource":"*"}],"Version":"2012-10-17"}`
	if iam.puts != 1 || iam.policies["reports/"+awsDenyBefore] != want {
		t.Errorf("%d times, IAM has %v", iam.puts, iam.policies)
	}
	later := l
	later.Opened, at = at, at.Add(time.Hour/2)
	if err := a.Revoke(t.Context(), later); !errors.Is(err, broker.ErrQueued) || iam.puts != 2 {
		t.Errorf("a later session: %v, put %d times", err, iam.puts)
	}
	spec := Spec{role: Role{RoleARN: "arn:aws:iam::1:role/x", Revoke: DenyRole}}
	if spec.Shares() != "arn:aws:iam::1:role/x" {
		t.Errorf("it shares %q", spec.Shares())
	}
}

func TestAWSCannotDeny(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		want   error
	}{
		{409, "LimitExceeded", broker.ErrIssuerRefused},
		{403, "AccessDenied", broker.ErrIssuerRefused},
		{404, "NoSuchEntity", broker.ErrIssuerRefused},
		{400, "Throttling", broker.ErrIssuerUnavailable},
		{500, "ServiceFailure", broker.ErrIssuerUnavailable},
	} {
		a, iam, _, l := revocable(t, DenySession)
		iam.refuse = stsError(c.status, c.code, "no")
		if err := a.Revoke(t.Context(), l); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.code, err)
		}
	}
	a, _, _, l := revocable(t, DenySession)
	for _, handle := range []string{"{}", `{"role":"../x","deny":"session"}`, `{"role":"x","deny":"all"}`, "x", `{"role":"x","account":"210987654321","deny":"role"}`} {
		l.Handle = []byte(handle)
		if err := a.Revoke(t.Context(), l); err == nil || errors.Is(err, broker.ErrQueued) {
			t.Errorf("the handle %s: %v", handle, err)
		}
	}
}

// vaultHandle is a handle as issuers of package vault store it.
const vaultHandle = `{"accessor":"a","made":"token","at":"0123456789abcdef"}`

func TestOwns(t *testing.T) {
	a, _, _, l := revocable(t, DenyRole)
	for handle, want := range map[string]bool{
		"":                              true,
		vaultHandle:                     false,
		string(l.Handle):                true,
		awsNothing:                      true,
		`{"role":"x","deny":"session"}`: true, // stored before handles named the account
		`{"role":"x","account":"210987654321","deny":"session"}`: false,
	} {
		if got := a.Owns(broker.Lease{Handle: []byte(handle)}); got != want {
			t.Errorf("Owns(%q) = %v, want %v", handle, got, want)
		}
	}
}

func TestRevokeRejectsForeignLease(t *testing.T) {
	l := broker.Lease{Handle: []byte(vaultHandle), Expires: time.Now().Add(time.Minute)}
	if err := (&Issuer{}).Revoke(t.Context(), l); !errors.Is(err, broker.ErrIssuerUnavailable) {
		t.Errorf("got %v, want %v", err, broker.ErrIssuerUnavailable)
	}
}
