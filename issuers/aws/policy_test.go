package aws

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

var update = flag.Bool("update", false, "rewrite the golden session policies")

const testRole = "arn:aws:iam::123456789012:role/reports"

func testPattern(pattern string) broker.Parameter {
	return broker.Parameter{Pattern: regexp.MustCompile("^(?:" + pattern + ")$"), MaxLength: 256, Required: true}
}

// reportsRole returns the role and entitlement of the example in the design.
func reportsRole() (Role, *broker.Entitlement) {
	return Role{RoleARN: testRole, Scopes: map[string]Scope{
			"read":  {Actions: []string{"s3:GetObject"}, Resources: []string{"arn:aws:s3:::reports/${prefix}/*"}},
			"write": {Actions: []string{"s3:PutObject", "s3:AbortMultipartUpload"}, Resources: []string{"arn:aws:s3:::reports/${prefix}/*"}},
			"list":  {Actions: []string{"s3:ListBucket"}, Resources: []string{"arn:aws:s3:::reports"}},
		}}, &broker.Entitlement{
			Name: "reports", Issuer: "aws", MaxTTL: time.Hour, MinTTL: MinTTL, Revocation: broker.RevokedAtExpiry,
			Parameters: map[string]broker.Parameter{"prefix": testPattern("[a-z0-9-]{1,40}")},
		}
}

// mistakes compiles a role, and returns its mistakes as "key: sentence".
func mistakes(c Config, r Role, e *broker.Entitlement) (*Spec, []string) {
	var list []string
	s := c.Compile(r, e, func(key, format string, args ...any) {
		list = append(list, key+": "+fmt.Sprintf(format, args...))
	})
	return s, list
}

func compile(t testing.TB, c Config, r Role, e *broker.Entitlement) *Spec {
	t.Helper()
	s, list := mistakes(c, r, e)
	if len(list) > 0 {
		t.Fatalf("Compile: %s", strings.Join(list, "\n"))
	}
	return s
}

var testRegion = Config{Region: "eu-west-1", WebIdentity: &WebIdentity{Issuer: testIssuer}}

// A session policy is a promise to approvers, so a change of its bytes needs a
// review. Rewrite the files with -update.
func TestSessionPolicyMatchesGolden(t *testing.T) {
	reports, e := reportsRole()
	wild := broker.Entitlement{Name: "wild", MaxTTL: time.Hour, Parameters: map[string]broker.Parameter{"glob": testPattern(`[a-z*?]+`), "group": testPattern(`[a-z/:]{1,60}`)}}
	logs := Role{RoleARN: "arn:aws:iam::123456789012:role/teams/logs", ManagedPolicies: []string{"arn:aws:iam::aws:policy/ReadOnlyAccess"}, Scopes: map[string]Scope{
		"search": {Actions: []string{"logs:StartQuery", "logs:Get*"}, Resources: []string{"arn:aws:logs:eu-west-1:123456789012:log-group:${group}:*", "arn:aws:logs:eu-west-1:123456789012:log-group:/a/${glob}"}},
		"find":   {Actions: []string{"logs:DescribeLogGroups"}, Resources: []string{"*"}},
	}}
	for _, c := range []struct {
		name   string
		role   Role
		e      *broker.Entitlement
		scopes []string
		values map[string]string
	}{
		{"read", reports, e, []string{"read"}, map[string]string{"prefix": "acme-2026"}},
		{"read-write", reports, e, []string{"write", "read"}, map[string]string{"prefix": "acme-2026"}},
		{"all", reports, e, []string{"list", "read", "write"}, map[string]string{"prefix": "acme-2026"}},
		{"full-role", Role{RoleARN: testRole, FullRole: true}, e, nil, nil},
		{"allowed-wildcards", logs, &wild, []string{"search", "find"}, map[string]string{"glob": "web*", "group": "a:b/c"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := compile(t, testRegion, c.role, c.e)
			got, err := s.SessionPolicy(c.scopes, c.values)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", c.name+".json")
			if *update {
				if err := os.WriteFile(file, []byte(got+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil || got+"\n" != string(want) {
				t.Errorf("%s (%v):\n%s\nwant\n%s", file, err, got, want)
			}
			slices.Reverse(c.scopes)
			if again, err := s.SessionPolicy(c.scopes, c.values); err != nil || again != got {
				t.Errorf("in another order (%v):\n%s", err, again)
			}
		})
	}
}

func TestCompileFindsMistakes(t *testing.T) {
	role, atPartition := Config{Region: "eu-west-1", AssumeRole: &AssumeRole{}}, Config{Region: "cn-north-1", AssumeRole: &AssumeRole{}}
	one := func(actions, resources string) func(*Role, *broker.Entitlement) {
		return func(r *Role, _ *broker.Entitlement) {
			r.Scopes = map[string]Scope{"s": {strings.Fields(actions), strings.Fields(resources)}}
		}
	}
	for name, c := range map[string]struct {
		cfg    Config
		change func(*Role, *broker.Entitlement)
		want   string // start of "key: sentence"; empty: no mistake
	}{
		"valid":                {testRegion, func(*Role, *broker.Entitlement) {}, ""},
		"no role":              {testRegion, func(r *Role, _ *broker.Entitlement) { r.RoleARN = "" }, "aws/role_arn: give the ARN of a role, such as arn:aws:iam"},
		"a user":               {testRegion, func(r *Role, _ *broker.Entitlement) { r.RoleARN = "arn:aws:iam::123456789012:user/ana" }, "aws/role_arn: "},
		"a session":            {testRegion, func(r *Role, _ *broker.Entitlement) { r.RoleARN = "arn:aws:sts::123456789012:assumed-role/a/b" }, "aws/role_arn: "},
		"short account":        {testRegion, func(r *Role, _ *broker.Entitlement) { r.RoleARN = "arn:aws:iam::12345:role/a" }, "aws/role_arn: "},
		"another partition":    {testRegion, func(r *Role, _ *broker.Entitlement) { r.RoleARN = "arn:aws-cn:iam::123456789012:role/a" }, "aws/role_arn: the issuer's region, eu-west-1, is in the partition aws"},
		"China":                {atPartition, func(r *Role, _ *broker.Entitlement) { r.RoleARN = "arn:aws-cn:iam::123456789012:role/a" }, "scopes/list/resources/0: it is in the partition aws, and the role is in aws-cn"},
		"MinIO role at AWS":    {testRegion, func(r *Role, _ *broker.Entitlement) { r.RoleARN = "arn:minio:iam:::role/abc" }, "aws/role_arn: "},
		"MinIO role at MinIO":  {Config{Region: "us-east-1", Endpoint: "https://minio.test", WebIdentity: &WebIdentity{}}, func(r *Role, _ *broker.Entitlement) { r.RoleARN = "arn:minio:iam:::role/abc" }, ""},
		"nothing":              {testRegion, func(r *Role, _ *broker.Entitlement) { r.Scopes = nil }, "scopes: name what can be requested"},
		"full role":            {testRegion, func(r *Role, _ *broker.Entitlement) { r.Scopes, r.FullRole = nil, true }, ""},
		"full role and scopes": {testRegion, func(r *Role, _ *broker.Entitlement) { r.FullRole = true }, "aws/full_role: "},
		"full role and managed": {testRegion, func(r *Role, _ *broker.Entitlement) {
			r.Scopes, r.FullRole, r.ManagedPolicies = nil, true, []string{"arn:aws:iam::aws:policy/X"}
		}, "aws/full_role: "},
		"external id":            {role, func(r *Role, _ *broker.Entitlement) { r.ExternalID = "acme:1/x" }, ""},
		"bad external id":        {role, func(r *Role, _ *broker.Entitlement) { r.ExternalID = "a b" }, "aws/external_id: "},
		"external id, assertion": {testRegion, func(r *Role, _ *broker.Entitlement) { r.ExternalID = "acme" }, "aws/external_id: only assume_role"},
		"chain, assertion":       {testRegion, func(r *Role, _ *broker.Entitlement) { r.Chain = true }, "aws/chain: "},
		"chain":                  {role, func(r *Role, _ *broker.Entitlement) { r.Chain = true }, ""},
		"chain, too long":        {role, func(r *Role, e *broker.Entitlement) { r.Chain, e.MaxTTL = true, time.Hour+time.Second }, "max_ttl: at most 1h with chain"},
		"too long":               {role, func(_ *Role, e *broker.Entitlement) { e.MaxTTL = 13 * time.Hour }, "max_ttl: AWS makes no session longer than 12h"},
		"too short":              {role, func(_ *Role, e *broker.Entitlement) { e.MaxTTL = 14 * time.Minute }, "max_ttl: AWS makes no session shorter than 15m"},
		"managed of another": {role, func(r *Role, _ *broker.Entitlement) {
			r.ManagedPolicies = []string{"arn:aws:iam::210987654321:policy/x"}
		}, "aws/managed_policies/0: AWS accepts only policies in the role's own account"},
		"managed, partition": {role, func(r *Role, _ *broker.Entitlement) { r.ManagedPolicies = []string{"arn:aws-cn:iam::aws:policy/x"} }, "aws/managed_policies/0: the role is in the partition aws"},
		"managed twice": {role, func(r *Role, _ *broker.Entitlement) {
			r.ManagedPolicies = []string{"arn:aws:iam::aws:policy/x", "arn:aws:iam::aws:policy/x"}
		}, "aws/managed_policies/1: it is listed twice"},
		"managed, not an ARN":         {role, func(r *Role, _ *broker.Entitlement) { r.ManagedPolicies = []string{"ReadOnlyAccess"} }, "aws/managed_policies/0: give the ARN"},
		"too many managed":            {role, func(r *Role, _ *broker.Entitlement) { r.ManagedPolicies = make([]string, 11) }, "aws/managed_policies: AWS accepts at most 10"},
		"action *":                    {role, one("*", "arn:aws:s3:::a/b"), "scopes/s/actions/0: "},
		"service *":                   {role, one("*:Get", "arn:aws:s3:::a/b"), "scopes/s/actions/0: "},
		"no action":                   {role, one("", "arn:aws:s3:::a/b"), "scopes/s/actions: "},
		"no resource":                 {role, one("s3:Get", ""), "scopes/s/resources: "},
		"wild action, one resource":   {role, one("s3:*", "arn:aws:s3:::a/*"), ""},
		"wild action, every resource": {role, one("s3:Get*", "*"), "scopes/s/resources/0: it is every resource"},
		"wild action, every bucket":   {role, one("s3:Get*", "arn:aws:s3:::*"), "scopes/s/resources/0: it is every resource"},
		"one action, every resource":  {role, one("ec2:DescribeInstances", "*"), ""},
		"not an ARN":                  {role, one("s3:Get", "reports/*"), "scopes/s/resources/0: "},
		"wild service":                {role, one("s3:Get", "arn:aws:*:::a"), "scopes/s/resources/0: "},
		"parameter as account":        {role, one("s3:Get", "arn:aws:s3::${prefix}:a"), "scopes/s/resources/0: "},
		"unknown parameter":           {role, one("s3:Get", "arn:aws:s3:::${bucket}/*"), `scopes/s/resources/0: there is no parameter "bucket"`},
		"AWS policy variable":         {role, one("s3:Get", "arn:aws:s3:::a/${aws:username}/*"), `scopes/s/resources/0: there is no parameter "aws:username"`},
		"stray dollar":                {role, one("s3:Get", "arn:aws:s3:::a/$${prefix}"), "scopes/s/resources/0: write a parameter as ${name}"},
		"unclosed reference":          {role, one("s3:Get", "arn:aws:s3:::a/${prefix"), "scopes/s/resources/0: write a parameter as ${name}"},
		"quote":                       {role, one("s3:Get", `arn:aws:s3:::a"b`), "scopes/s/resources/0: it has characters"},
		"beyond Latin":                {role, one("s3:Get", "arn:aws:s3:::a/Ω"), "scopes/s/resources/0: it has characters"},
		"optional parameter": {role, func(_ *Role, e *broker.Entitlement) {
			e.Parameters["prefix"] = broker.Parameter{Pattern: regexp.MustCompile("^a$")}
		}, "parameters/prefix: scopes.read.resources references it: make it required"},
		"maybe empty parameter": {role, func(_ *Role, e *broker.Entitlement) { e.Parameters["prefix"] = testPattern("[a-z]*") }, "parameters/prefix: scopes.read.resources references it: its pattern must not match"},
		"too large": {role, func(r *Role, e *broker.Entitlement) {
			e.Parameters["prefix"] = testPattern("[a-z]+")
			r.Scopes["read"] = Scope{[]string{"s3:GetObject"}, []string{"arn:aws:s3:::a/${prefix}/${prefix}/*", "arn:aws:s3:::b/${prefix}/${prefix}/*", "arn:aws:s3:::c/${prefix}/${prefix}/*", "arn:aws:s3:::d/${prefix}/${prefix}/*"}}
		}, "scopes: the session policy of all scopes with the longest parameters has 2"},
		"revoker of another account": {Config{Region: "eu-west-1", WebIdentity: &WebIdentity{}, Revoker: "arn:aws:iam::210987654321:role/revoker"},
			func(r *Role, _ *broker.Entitlement) { r.Revoke = DenySession }, "aws/revoke_sessions: the issuer's revoker_role_arn is in the account 210987654321"},
		"revoker of the same account": {Config{Region: "eu-west-1", WebIdentity: &WebIdentity{}, Revoker: "arn:aws:iam::123456789012:role/revoker"},
			func(r *Role, _ *broker.Entitlement) { r.Revoke = DenySession }, ""},
		"too large, managed": {role, func(r *Role, _ *broker.Entitlement) {
			for i := range maxManagedPolicies {
				r.ManagedPolicies = append(r.ManagedPolicies, fmt.Sprintf("arn:aws:iam::aws:policy/%s/%s%d", strings.Repeat("p", 60), strings.Repeat("n", 100), i))
			}
		}, "scopes: the session policy of all scopes with the longest parameters has 2"},
	} {
		t.Run(name, func(t *testing.T) {
			r, e := reportsRole()
			c.change(&r, e)
			_, list := mistakes(c.cfg, r, e)
			found := slices.ContainsFunc(list, func(s string) bool { return strings.HasPrefix(s, c.want) })
			if (c.want == "") != (len(list) == 0) || c.want != "" && !found {
				t.Errorf("mistakes are %q, want %q", list, c.want)
			}
		})
	}
}

func TestDigestCoversWholeSpec(t *testing.T) {
	role := Config{Region: "eu-west-1", AssumeRole: &AssumeRole{}}
	seen := map[string]string{}
	for name, change := range map[string]func(*Config, *Role){
		"unchanged": func(*Config, *Role) {},
		"role":      func(_ *Config, r *Role) { r.RoleARN += "x" },
		"managed":   func(_ *Config, r *Role) { r.ManagedPolicies = []string{"arn:aws:iam::aws:policy/X"} },
		"external":  func(_ *Config, r *Role) { r.ExternalID = "acme" },
		"chain":     func(_ *Config, r *Role) { r.Chain = true },
		"full":      func(_ *Config, r *Role) { r.FullRole, r.Scopes = true, nil },
		"scope":     func(_ *Config, r *Role) { delete(r.Scopes, "list") },
		"action":    func(_ *Config, r *Role) { r.Scopes["list"].Actions[0] = "s3:GetBucketLocation" },
		"resource":  func(_ *Config, r *Role) { r.Scopes["list"].Resources[0] = "arn:aws:s3:::reports2" },
		"endpoint":  func(c *Config, _ *Role) { c.Endpoint = "https://minio.test" },
	} {
		r, e := reportsRole()
		cfg := role
		change(&cfg, &r)
		digest := compile(t, cfg, r, e).Digest().String()
		if other, ok := seen[digest]; ok {
			t.Errorf("%q and %q have the same digest", name, other)
		}
		seen[digest] = name
	}
	// The spec does not share the operator's slices.
	r, e := reportsRole()
	s := compile(t, role, r, e)
	before := s.Digest()
	r.Scopes["list"].Actions[0] = "s3:DeleteBucket"
	if s.Digest() != before {
		t.Error("the spec changed after it was compiled")
	}
}

func TestAllowanceOfPattern(t *testing.T) {
	for pattern, want := range map[string]string{
		`[a-z0-9-]{1,40}`: "",
		`.*`:              "",
		`.+?`:             "",
		`[^/]*`:           "",
		`[^*]+`:           "",
		`[ -~]+`:          "",
		`\S+`:             "",
		`(?i:a)(?P<x>b)?`: "",
		`[[:alpha:]]+`:    "",
		`[^[:alpha:]?]+`:  "",
		`[]a]*`:           "",
		`\Q*\E`:           "",
		`a|b$`:            "",
		`[a-z*]+`:         "*",
		`[a-z\*]+`:        "*",
		`logs/\*`:         "*",
		`[]?]`:            "?",
		`\$\{[a-z]+\}`:    "$",
		`a:b`:             ":",
		`[[:alpha:]:]+`:   ":",
		`[*?$:]`:          "*?$:",
		`\.\./x`:          "..",
		`[a.]+`:           "",
	} {
		a := allowanceOf(testPattern(pattern).Pattern)
		got := a.characters
		if a.dots {
			got += ".."
		}
		if got != want {
			t.Errorf("%s allows %q, want %q", pattern, got, want)
		}
	}
	if a := allowanceOf(nil); a != (allowance{}) {
		t.Errorf("no pattern allows %+v", a)
	}
}

func TestMaxLength(t *testing.T) {
	for pattern, want := range map[string]int{
		`[a-z]{1,40}`: 40, `[a-z]+`: 256, `a*`: 256, `abc|d`: 3, `(ab){3}c?`: 7, `.{2,}`: 256, `[a-z]{900}`: 256, `()*`: 0, `^$`: 0, `(?i)äb`: 2,
	} {
		if got := maxLength(testPattern(pattern)); got != want {
			t.Errorf("%s matches %d characters, want %d", pattern, got, want)
		}
	}
	if got := maxLength(broker.Parameter{}); got != broker.MaxParameter {
		t.Errorf("without a pattern: %d", got)
	}
}

func TestParametersAreOnlyText(t *testing.T) {
	r, e := reportsRole()
	e.Parameters["prefix"] = testPattern(".+")
	s := compile(t, testRegion, r, e)
	for value, good := range map[string]bool{
		"acme": true, "a/b": true, "a.b": true, "Zürich": true, "a b": true, "{x}": true, "": false, "*": false, "a?": false, "$": false,
		"${aws:username}": false, "a:b": false, "..": false, "a/../b": false, "a...": false, `a"`: false, `\`: false, "a\n": false,
		"\u0085": false, "Ω": false, "\xff": false, "😀": false,
	} {
		policy, err := s.SessionPolicy([]string{"read"}, map[string]string{"prefix": value})
		if (err == nil) != good {
			t.Errorf("%q: %v", value, err)
		}
		if err != nil && (policy != "" || !errors.Is(err, broker.ErrInvalidParameter) || len(value) > 3 && strings.Contains(err.Error(), value)) {
			t.Errorf("%q: %q, %v", value, policy, err)
		}
	}
	// Two values may not make ".." together.
	r.Scopes = map[string]Scope{"s": {[]string{"s3:GetObject"}, []string{"arn:aws:s3:::a/${prefix}${next}"}}}
	e.Parameters["next"] = testPattern("[a-z.]+")
	s = compile(t, testRegion, r, e)
	if _, err := s.SessionPolicy([]string{"s"}, map[string]string{"prefix": "x.", "next": "."}); !errors.Is(err, broker.ErrInvalidParameter) {
		t.Errorf("two dots from two values: got %v, want %v", err, broker.ErrInvalidParameter)
	}
	e.Parameters["next"] = testPattern(`\.\./[a-z]+`)
	s = compile(t, testRegion, r, e)
	if policy, err := s.SessionPolicy([]string{"s"}, map[string]string{"prefix": "x/", "next": "../y"}); err != nil || !strings.Contains(policy, ":::a/x/../y") {
		t.Errorf("two dots that the pattern names: %s, %v", policy, err)
	}
	if _, err := s.SessionPolicy([]string{"s"}, map[string]string{"prefix": "x/../", "next": "../y"}); !errors.Is(err, broker.ErrInvalidParameter) {
		t.Errorf("two dots that another pattern names: got %v, want %v", err, broker.ErrInvalidParameter)
	}
}

func TestSessionPolicyRefusesScopes(t *testing.T) {
	r, e := reportsRole()
	s := compile(t, testRegion, r, e)
	full := compile(t, testRegion, Role{RoleARN: testRole, FullRole: true}, e)
	values := map[string]string{"prefix": "acme"}
	for name, f := range map[string]func() (string, error){
		"no scope":          func() (string, error) { return s.SessionPolicy(nil, values) },
		"unknown scope":     func() (string, error) { return s.SessionPolicy([]string{"read", "delete"}, values) },
		"scopes, full role": func() (string, error) { return full.SessionPolicy([]string{"read"}, values) },
		"empty spec":        func() (string, error) { return (&Spec{}).SessionPolicy(nil, nil) },
	} {
		if policy, err := f(); policy != "" || !errors.Is(err, broker.ErrIssuerRefused) {
			t.Errorf("%s: %q, %v", name, policy, err)
		}
	}
	exact := func(n int) error {
		empty, err := s.SessionPolicy([]string{"read"}, map[string]string{"prefix": "a"})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.SessionPolicy([]string{"read"}, map[string]string{"prefix": strings.Repeat("ä", 1+n-len(empty))})
		return err
	}
	if err := exact(2048); err != nil {
		t.Errorf("2,048 characters: got %v, want none", err)
	}
	if err := exact(2049); !errors.Is(err, broker.ErrPolicyTooLarge) {
		t.Errorf("2,049 characters: got %v, want %v", err, broker.ErrPolicyTooLarge)
	}
}

// For any value, the policy is the operator's with a text filled in, or an error.
func FuzzSessionPolicy(f *testing.F) {
	for _, value := range []string{"acme", "*", "a/../b", `"],"Action":["*`, "${aws:username}", "\u2028", "ä", "a:b", `\u002a`, ".", "{}"} {
		f.Add(value, value)
	}
	r, e := reportsRole()
	e.Parameters["prefix"], e.Parameters["next"] = testPattern("(?s:.+)"), testPattern("[^*]+")
	r.Scopes["read"] = Scope{[]string{"s3:GetObject"}, []string{"arn:aws:s3:::reports/${prefix}/${next}*"}}
	s := compile(f, testRegion, r, e)
	f.Fuzz(func(t *testing.T, prefix, next string) {
		text, err := s.SessionPolicy([]string{"read"}, map[string]string{"prefix": prefix, "next": next})
		if err != nil {
			return
		}
		var policy struct {
			Statement []struct {
				Action, Resource []string
				Effect           string
			}
			Version string
		}
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&policy); err != nil || len(policy.Statement) != 1 || d.More() {
			t.Fatalf("%q: %v", text, err)
		}
		st := policy.Statement[0]
		if !slices.Equal(st.Action, []string{"s3:GetObject"}) || len(st.Resource) != 1 || st.Effect != "Allow" || policy.Version != "2012-10-17" {
			t.Fatalf("%q allows something else", text)
		}
		inner, ok := strings.CutPrefix(st.Resource[0], "arn:aws:s3:::reports/")
		if !ok || inner != prefix+"/"+next+"*" || strings.ContainsAny(strings.TrimSuffix(inner, "*"), "*?$:") || strings.Contains(inner, "..") || prefix == "" || next == "" {
			t.Fatalf("%q means something else", text)
		}
	})
}
