package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/attest/mapping"
	"accessbroker.internal/internal/strictjson"
)

// understandWorkloads loads the usual file with these issuers of workload tokens.
func understandWorkloads(t *testing.T, issuers string) (*Config, error) {
	t.Helper()
	dir := sealedDir(t)
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return understand(dir, strings.Replace(goodConfig, "store: sqlite", "  oidc_workloads:\n"+issuers+"store: sqlite", 1))
}

// issuerWith is an issuer that is not one of a known platform, with further keys and the rules.
func issuerWith(more, rules string) string {
	return "    own: {issuer: \"https://issuer.acme.test\", trust_domain: ci.acme.test, " + more + "rules: [" + rules + "]}\n"
}

const ownRule = `{claims: {project: shop}, spiffe_id: "spiffe://ci.acme.test/shop"}`

// gitHubWith is GitHub, with one rule.
func gitHubWith(claims, id string) string {
	return "    github: {issuer: \"https://token.actions.githubusercontent.com\", trust_domain: ci.acme.test, rules: [{claims: {" + claims + "}, spiffe_id: \"spiffe://ci.acme.test/" + id + "\"}]}\n"
}

func TestWorkloadIssuerConfig(t *testing.T) {
	c, err := understandWorkloads(t, `
    github:
      issuer: https://token.actions.githubusercontent.com
      trust_domain: ci.acme.test
      rules:
        - claims: {repository_owner_id: "65", repository_id: "74", ref: [refs/heads/main, refs/heads/release], event_name: push}
          spiffe_id: spiffe://ci.acme.test/github/${repository_id}
    cluster:
      issuer: https://kubernetes.default.svc.cluster.local
      audience: broker
      trust_domain: k8s.acme.test
      algorithms: [RS256]
      max_lifetime: 2h
      one_time: false
      jwks_uri: https://10.0.0.1:6443/openid/v1/jwks
      bearer_token_file: secret
      rules:
        - claims:
            kubernetes.io:
              namespace: payments
              serviceaccount: {name: [api, web]}
            admin: false
            level: 3
          spiffe_id: spiffe://k8s.acme.test/ns/payments/sa/${/kubernetes.io/serviceaccount/name}
`)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.WorkloadIssuers) != 2 || !slices.Equal(c.OIDCDomains(), []string{"ci.acme.test", "k8s.acme.test"}) {
		t.Fatalf("got %+v", c.WorkloadIssuers)
	}
	cluster, gitHub := c.WorkloadIssuers[0], c.WorkloadIssuers[1]
	if cluster.Audience != "broker" || cluster.MaxLifetime != 2*time.Hour || !cluster.Reusable || !slices.Equal(cluster.Algorithms, []string{"RS256"}) || filepath.Base(cluster.BearerFile) != "secret" {
		t.Errorf("got %+v", cluster)
	}
	if gitHub.Audience != c.ExternalURL.String() || gitHub.MaxLifetime != time.Hour || gitHub.Reusable || len(gitHub.Algorithms) == 0 {
		t.Errorf("got %+v", gitHub)
	}
	for text, want := range map[string]string{
		`{"kubernetes.io": {"namespace": "payments", "serviceaccount": {"name": "web"}}, "admin": false, "level": 3}`:   "spiffe://k8s.acme.test/ns/payments/sa/web",
		`{"kubernetes.io": {"namespace": "payments", "serviceaccount": {"name": "web"}}, "admin": "false", "level": 3}`: "",
		`{"kubernetes.io": {"namespace": "payments", "serviceaccount": {"name": "web"}}, "admin": false, "level": "3"}`: "",
	} {
		if id, _ := mapping.Map(cluster.Rules, claims(t, text)); id != want {
			t.Errorf("%s: got %q, want %q", text, id, want)
		}
	}
	if text := strings.Join(c.Warnings, "\n"); strings.Contains(text, "oidc_workloads") {
		t.Errorf("got warnings %s", text)
	}
}

func claims(t *testing.T, text string) map[string]json.RawMessage {
	t.Helper()
	members, err := strictjson.Object([]byte(text), 8)
	if err != nil {
		t.Fatal(err)
	}
	return members
}

// What a rule for a platform does not name is not open: a pull request gets nothing unless a
// rule names it.
func TestPullRequestsNeedARule(t *testing.T) {
	token := func(event string) string {
		return `{"repository_id": "74", "repository_owner_id": "65", "ref": "refs/heads/main", "event_name": "` + event + `"}`
	}
	open := gitHubWith(`repository_id: "74", ref: refs/heads/main`, "shop")
	named := gitHubWith(`repository_id: "74", ref: refs/heads/main, event_name: [pull_request_target]`, "shop")
	for issuers, want := range map[string]map[string]bool{
		open:  {"push": true, "schedule": true, "release": true, "workflow_dispatch": true, "pull_request": false, "pull_request_target": false, "workflow_run": false, "issue_comment": false, "merge_group": false, "PUSH": false, "": false},
		named: {"push": false, "pull_request": false, "pull_request_target": true},
	} {
		c, err := understandWorkloads(t, issuers)
		if err != nil {
			t.Fatal(err)
		}
		for event, maps := range want {
			if id, _ := mapping.Map(c.WorkloadIssuers[0].Rules, claims(t, token(event))); (id != "") != maps {
				t.Errorf("%s: the event %q got %q", issuers, event, id)
			}
		}
	}
	for _, issuer := range []string{"https://gitlab.com", "https://gitlab.acme.test"} {
		testMergeRequests(t, issuer)
	}
}

func testMergeRequests(t *testing.T, issuer string) {
	c, err := understandWorkloads(t, `    gitlab: {issuer: "`+issuer+`", trust_domain: ci.acme.test, rules: [{claims: {project_id: "22", ref_protected: "true"}, spiffe_id: "spiffe://ci.acme.test/x"}]}
`)
	if err != nil {
		t.Fatal(err)
	}
	for source, maps := range map[string]bool{"push": true, "web": true, "merge_request_event": false, "external_pull_request_event": false, "parent_pipeline": false, "pipeline": false, "trigger": false} {
		text := `{"project_id": "22", "ref_protected": "true", "pipeline_source": "` + source + `"}`
		if id, _ := mapping.Map(c.WorkloadIssuers[0].Rules, claims(t, text)); (id != "") != maps {
			t.Errorf("the pipeline source %q got %q", source, id)
		}
	}
}

func TestWorkloadIssuerMistakes(t *testing.T) {
	for name, test := range map[string]struct{ issuers, want string }{
		"no issuer":               {`    own: {trust_domain: ci.acme.test, rules: [` + ownRule + "]}\n", "own.issuer"},
		"plain HTTP":              {strings.Replace(issuerWith("", ownRule), "https://issuer", "http://issuer", 1), "must be an https URL"},
		"a query":                 {strings.Replace(issuerWith("", ownRule), "acme.test\"", "acme.test?x\"", 1), "must be an https URL"},
		"a fragment":              {strings.Replace(issuerWith("", ownRule), "acme.test\"", "acme.test#\"", 1), "must be an https URL"},
		"a user":                  {strings.Replace(issuerWith("", ownRule), "https://issuer", "https://u:p@issuer", 1), "must be an https URL"},
		"no rule":                 {issuerWith("", ""), "own.rules: write 1 to"},
		"an open rule":            {issuerWith("", `{claims: {}, spiffe_id: "spiffe://ci.acme.test/a"}`), "no condition on a claim"},
		"a rule without claims":   {issuerWith("", `{spiffe_id: "spiffe://ci.acme.test/a"}`), "no condition on a claim"},
		"only the audience":       {issuerWith("", `{claims: {aud: x}, spiffe_id: "spiffe://ci.acme.test/a"}`), "no condition on a claim"},
		"a fraction":              {issuerWith("", `{claims: {a: 1.5}, spiffe_id: "spiffe://ci.acme.test/a"}`), "compared with a text, true, false or a whole number"},
		"null":                    {issuerWith("", `{claims: {a: null}, spiffe_id: "spiffe://ci.acme.test/a"}`), "compared with a text"},
		"octal":                   {issuerWith("", `{claims: {a: 0777}, spiffe_id: "spiffe://ci.acme.test/a"}`), "compared with a text"},
		"a large number":          {issuerWith("", `{claims: {a: 12345678901234567}, spiffe_id: "spiffe://ci.acme.test/a"}`), "compared with a text"},
		"an empty list":           {issuerWith("", `{claims: {a: []}, spiffe_id: "spiffe://ci.acme.test/a"}`), "needs 1 to"},
		"a list of lists":         {issuerWith("", `{claims: {a: [[b]]}, spiffe_id: "spiffe://ci.acme.test/a"}`), "compared with a text"},
		"a list as claims":        {issuerWith("", `{claims: [a], spiffe_id: "spiffe://ci.acme.test/a"}`), "by name"},
		"another trust domain":    {issuerWith("", `{claims: {a: b}, spiffe_id: "spiffe://acme.test/agent/triage"}`), "must be in the trust domain of the issuer's workloads"},
		"a part of a segment":     {issuerWith("", `{claims: {a: b}, spiffe_id: "spiffe://ci.acme.test/x-${a}"}`), "a whole segment"},
		"a domain of SVIDs":       {strings.ReplaceAll(issuerWith("", ownRule), "ci.acme.test", "acme.test"), "have SVIDs"},
		"no trust domain":         {strings.Replace(issuerWith("", ownRule), "trust_domain: ci.acme.test, ", "", 1), "write a trust domain for the workloads of this issuer"},
		"shared for nothing":      {issuerWith("shared_trust_domain: true, ", ownRule), "no workload of ci.acme.test has an SVID"},
		"an algorithm with MAC":   {issuerWith("algorithms: [HS256], ", ownRule), `"HS256": choose from`},
		"no algorithm":            {issuerWith("algorithms: [none], ", ownRule), `"none": choose from`},
		"a long lifetime":         {issuerWith("max_lifetime: 26h, ", ownRule), "at most 25h"},
		"two places of keys":      {issuerWith(`jwks_file: keys.json, jwks_uri: "https://a.test/jwks", `, ownRule), "has no effect next to jwks_file"},
		"keys by plain HTTP":      {issuerWith(`jwks_uri: "http://a.test/jwks", `, ownRule), "write the https URL of the issuer's keys"},
		"the audience of /mcp":    {issuerWith(`audience: "https://broker.acme.test/mcp", `, ownRule), "for the MCP endpoint"},
		"an unknown key":          {issuerWith("one_tme: true, ", ownRule), "one_tme"},
		"an unknown key of rules": {issuerWith("", `{claim: {a: b}, spiffe_id: "spiffe://ci.acme.test/a"}`), `"claim"`},
		"one issuer twice":        {issuerWith("", ownRule) + strings.Replace(issuerWith("", ownRule), "own:", "twin:", 1), "has the same issuer"},
		"GitHub, anyone":          {gitHubWith(`ref: refs/heads/main, event_name: push`, "x"), "everyone can get a token of GitHub Actions"},
		"GitHub, a workflow":      {gitHubWith(`job_workflow_ref: acme/x/.github/workflows/d.yml@refs/heads/main`, "x"), "everyone can get a token of GitHub Actions"},
		"GitHub, a number":        {gitHubWith(`repository_id: 74`, "x"), `the claims of GitHub Actions are texts: write "74"`},
		"GitHub, a repository":    {gitHubWith(`repository_id: "74"`, "${repository}"), "never one segment"},
		"GitLab, anyone":          {strings.Replace(gitHubWith(`ref: main`, "x"), "token.actions.githubusercontent.com", "gitlab.com", 1), "everyone can get a token of GitLab"},
		"Google, anyone":          {strings.Replace(gitHubWith(`email_verified: true`, "x"), "token.actions.githubusercontent.com", "accounts.google.com", 1), "everyone can get a token of Google"},
		"Entra ID, anyone":        {strings.Replace(gitHubWith(`tid: "7"`, "x"), "token.actions.githubusercontent.com", "sts.windows.net/7/", 1), "everyone can get a token of Microsoft Entra ID"},
	} {
		_, err := understandWorkloads(t, test.issuers)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %s", name, err, test.want)
		}
	}
}

func TestWorkloadIssuerWarnings(t *testing.T) {
	cluster := func(name, more, id string) string {
		return "    " + name + ": {issuer: \"https://" + name + ".acme.test\", trust_domain: k8s.acme.test, " + more + "rules: [{claims: {kubernetes.io: {namespace: a}}, spiffe_id: \"spiffe://k8s.acme.test/" + id + "\"}]}\n"
	}
	for name, test := range map[string]struct{ issuers, want string }{
		"names of GitHub":     {gitHubWith(`repository: acme/shop, ref: refs/heads/main`, "x"), "after a rename or a deletion"},
		"a subject of GitHub": {gitHubWith(`sub: repo:acme/shop:ref:refs/heads/main`, "x"), "after a rename or a deletion"},
		"every branch":        {gitHubWith(`repository_id: "74"`, "x"), "every branch gets this identity"},
		"pods use one token":  {cluster("one", "", "x"), "write one_time: false"},
		"two clusters":        {cluster("one", "one_time: false, ", "ns/${/kubernetes.io/namespace}") + cluster("two", "one_time: false, ", "ns/a"), "a rule of one may make the same SPIFFE ID"},
	} {
		c, err := understandWorkloads(t, test.issuers)
		if err != nil {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		if text := strings.Join(c.Warnings, "\n"); !strings.Contains(text, test.want) {
			t.Errorf("%s: got warnings %s, want %s", name, text, test.want)
		}
	}
	for name, issuers := range map[string]string{
		"ids in the rule":    gitHubWith(`repository: acme/shop, repository_owner_id: "65", ref: refs/heads/main`, "x"),
		"ids in the ID":      gitHubWith(`repository: acme/shop, ref: refs/heads/main`, "${repository_id}"),
		"a text with colons": issuerWith("", `{claims: {sub: [job:acme/shop:main, "job:x"]}, spiffe_id: "spiffe://ci.acme.test/shop"}`),
		"another segment":    cluster("one", "one_time: false, ", "one/x") + cluster("two", "one_time: true, ", "two/x"),
	} {
		c, err := understandWorkloads(t, issuers)
		if err != nil {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		if text := strings.Join(c.Warnings, "\n"); strings.Contains(text, "oidc_workloads") {
			t.Errorf("%s: got warnings %s", name, text)
		}
	}
	c, err := understandWorkloads(t, issuerWith("", `{claims: {sub: [job:acme/shop:main, "job:x"]}, spiffe_id: "spiffe://ci.acme.test/shop"}`))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := mapping.Map(c.WorkloadIssuers[0].Rules, claims(t, `{"sub": "job:acme/shop:main"}`)); err != nil || id == "" {
		t.Errorf("a text with colons is read otherwise: got %q, %v", id, err)
	}
}

func TestSharedTrustDomain(t *testing.T) {
	c, err := understandWorkloads(t, strings.ReplaceAll(issuerWith("shared_trust_domain: true, ", ownRule), "ci.acme.test", "acme.test"))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.OIDCDomains()) != 0 {
		t.Errorf("got the domains %v: workloads of acme.test have SVIDs", c.OIDCDomains())
	}
}

// A company without SPIFFE starts with tokens alone.
func TestConfigWithoutSVIDs(t *testing.T) {
	dir := sealedDir(t)
	with := func(attest string) (*Config, error) {
		return understand(dir, `
server:
  external_url: https://broker.acme.test
  listen: 127.0.0.1:8443
  tls: {cert: tls.crt, key: tls.key}
  seal_keys: [{file: seal.key}]
`+attest+`
store: sqlite:broker.db
policies: policies
issuers: {tickets: {token: {audience: "https://tickets.acme.test"}}}
entitlements: {tickets-api: {issuer: tickets, scopes: ["tickets:read"]}}
`)
	}
	c, err := with("attest:\n  trust_domain: acme.test\n  oidc_workloads:\n" + issuerWith("", ownRule))
	if err != nil {
		t.Fatal(err)
	}
	if !c.WithoutSVIDs {
		t.Error("the file has SVIDs")
	}
	for name, test := range map[string]struct{ attest, want string }{
		"neither":            {"attest:\n  trust_domain: acme.test\n", "or oidc_workloads if no workload has an SVID"},
		"domains of no SVID": {"attest:\n  trust_domain: acme.test\n  trust_domains: [acme.test, other.test]\n  oidc_workloads:\n" + issuerWith("", ownRule), "attest.trust_domains"},
	} {
		if _, err := with(test.attest); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %s", name, err, test.want)
		}
	}
}
