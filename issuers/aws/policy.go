package aws

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Bounds of STS (AWS STS API Reference, AssumeRole and
// AssumeRoleWithWebIdentity).
const (
	MinTTL      = 15 * time.Minute // DurationSeconds is 900 at least
	MaxTTL      = 12 * time.Hour   // no role can be set to more
	ChainMaxTTL = time.Hour        // whatever the role is set to, if a role assumes it

	awsPolicyLength    = 2048 // characters of the session policy and of the managed policies' ARNs
	awsManagedPolicies = 10
)

// An Role is what an entitlement says of AWS, as the operator wrote it.
type Role struct {
	RoleARN         string
	FullRole        bool     // all that the role may: the session policy allows everything
	ManagedPolicies []string // ARNs; they add to what every scope allows
	ExternalID      string   // that the role's trust policy asks for
	Chain           bool     // the broker's own credentials are those of a role
	Revoke          Deny     // what is denied when a session is revoked
	Scopes          map[string]Scope
}

// An Scope is what one scope allows. Resources may name required parameters
// of the entitlement in the last part of their ARN, as ${name}.
type Scope struct {
	Actions   []string
	Resources []string
}

// An Spec is what one entitlement was compiled to, broker.Entitlement.Spec.
// It is immutable.
type Spec struct {
	role       Role // without its scopes
	endpoint   string
	scopes     map[string]awsScope
	parameters map[string]awsAllowance
}

type awsScope struct {
	actions   []string // sorted
	resources []string // sorted templates
}

var (
	awsRoleARN     = regexp.MustCompile(`^arn:(aws[a-z-]*):iam::([0-9]{12}):role/(?:[\w+=,.@-]+/)*[\w+=,.@-]{1,64}$`)
	awsForeignRole = regexp.MustCompile(`^arn:([a-z][a-z0-9-]*):iam::([0-9]{12})?:role/(?:[\w+=,.@-]+/)*[\w+=,.@-]{1,64}$`)
	awsManagedARN  = regexp.MustCompile(`^arn:([a-z][a-z0-9-]*):iam::(aws|[0-9]{12}):policy/(?:[\w+=,.@-]+/)*[\w+=,.@-]{1,128}$`)
	awsExternalID  = regexp.MustCompile(`^[\w+=,.@:/-]{2,}$`)
	awsAction      = regexp.MustCompile(`^[a-z][a-z0-9-]*:[A-Za-z0-9*?]+$`)
	awsResource    = regexp.MustCompile(`^arn:([a-z][a-z0-9-]*):[a-z][a-z0-9-]*:[a-z0-9-]*:(?:[0-9]{12}|aws|\*)?:(.+)$`)
	awsReference   = regexp.MustCompile(`\$\{([^{}$]*)\}`)
)

// Compile makes of what the operator wrote what the issuer works with. It says
// what is wrong with it by the key in the entitlement ("aws/role_arn",
// "scopes/read/resources/0", "max_ttl") and in a sentence that says what to do;
// the spec of a role that something is wrong with is good for nothing.
func (c Config) Compile(r Role, e *broker.Entitlement, bad func(key, format string, args ...any)) *Spec {
	s := &Spec{role: r, endpoint: c.Endpoint, scopes: map[string]awsScope{}, parameters: map[string]awsAllowance{}}
	s.role.Scopes = nil
	s.role.ManagedPolicies = slices.Sorted(slices.Values(r.ManagedPolicies))
	for name, p := range e.Parameters {
		s.parameters[name] = awsAllows(p.Pattern)
	}
	partition := c.checkRole(r, bad)
	c.checkWay(r, bad)
	c.checkManaged(r, partition, bad)
	checkAWSTimes(r, e, bad)
	checkFullRole(r, bad)
	c.checkRevoke(r, bad)
	for _, name := range slices.Sorted(maps.Keys(r.Scopes)) {
		check := awsScopeCheck{partition, e.Parameters, "scopes/" + name, bad}
		s.scopes[name] = check.compile(r.Scopes[name])
	}
	if n := s.longest(e.Parameters); n > awsPolicyLength {
		bad("scopes", "the session policy of all scopes with the longest parameters has %d characters, and AWS takes %d, managed policies' ARNs included: use fewer or shorter resources, a smaller max_length of the parameters, or two entitlements", n, awsPolicyLength)
	}
	return s
}

// checkRole gives the role's partition.
func (c Config) checkRole(r Role, bad func(key, format string, args ...any)) string {
	form, want := awsRoleARN, awsPartition(c.Region)
	if c.Endpoint != "" {
		form = awsForeignRole // MinIO has roles of its own: arn:minio:iam:::role/NAME
	}
	m := form.FindStringSubmatch(r.RoleARN)
	switch {
	case m == nil || len(r.RoleARN) > awsPolicyLength:
		bad("aws/role_arn", "give the ARN of a role, such as arn:%s:iam::123456789012:role/reports", want)
		return want
	case c.Endpoint == "" && m[1] != want:
		bad("aws/role_arn", "the issuer's region, %s, is in the partition %s, and a role of %s can't be assumed there", c.Region, want, m[1])
	}
	return m[1]
}

// checkWay wants what only a way of assuming the role knows to be used with it.
func (c Config) checkWay(r Role, bad func(key, format string, args ...any)) {
	if r.ExternalID != "" && (!awsExternalID.MatchString(r.ExternalID) || len(r.ExternalID) > 1224) {
		bad("aws/external_id", "2 to 1224 letters, digits and any of _+=,.@:/-")
	}
	if c.AssumeRole == nil && r.ExternalID != "" {
		bad("aws/external_id", "only assume_role knows an external id: an assertion names its entitlement in sub instead")
	}
	if c.AssumeRole == nil && r.Chain {
		bad("aws/chain", "web_identity assumes the role directly: leave chain out")
	}
}

func (c Config) checkManaged(r Role, partition string, bad func(key, format string, args ...any)) {
	if len(r.ManagedPolicies) > awsManagedPolicies {
		bad("aws/managed_policies", "AWS takes %d at most", awsManagedPolicies)
	}
	for i, arn := range r.ManagedPolicies {
		key := fmt.Sprintf("aws/managed_policies/%d", i)
		m := awsManagedARN.FindStringSubmatch(arn)
		switch {
		case m == nil:
			bad(key, "give the ARN of a managed policy, such as arn:%s:iam::123456789012:policy/reports", partition)
		case m[1] != partition:
			bad(key, "the role is in the partition %s: so must the policy be", partition)
		case m[2] != "aws" && !strings.Contains(r.RoleARN, ":"+m[2]+":"):
			bad(key, "AWS wants it to be in the role's own account, or one of AWS's own")
		case slices.Contains(r.ManagedPolicies[:i], arn):
			bad(key, "it is listed twice")
		}
	}
}

func checkAWSTimes(r Role, e *broker.Entitlement, bad func(key, format string, args ...any)) {
	switch {
	case e.MaxTTL < MinTTL:
		bad("max_ttl", "AWS makes no credential for less than %s", broker.Short(MinTTL))
	case e.MaxTTL > MaxTTL:
		bad("max_ttl", "AWS makes no credential for more than %s", broker.Short(MaxTTL))
	case r.Chain && e.MaxTTL > ChainMaxTTL:
		bad("max_ttl", "at most %s with chain: AWS gives a role that assumes a role no more", broker.Short(ChainMaxTTL))
	}
}

// checkFullRole wants it said aloud that a credential is the whole role.
func checkFullRole(r Role, bad func(key, format string, args ...any)) {
	switch {
	case !r.FullRole && len(r.Scopes) == 0:
		bad("scopes", "say what can be asked for, such as read: {actions: [s3:GetObject], resources: [ARN]}; or say aws: {full_role: true}, which gives all that the role may")
	case r.FullRole && len(r.Scopes) > 0:
		bad("aws/full_role", "it gives all that the role may: leave it out, or the scopes")
	case r.FullRole && len(r.ManagedPolicies) > 0:
		bad("aws/full_role", "it gives all that the role may, and managed_policies give less: leave one of them out")
	}
}

// An awsScopeCheck checks one scope.
type awsScopeCheck struct {
	partition  string
	parameters map[string]broker.Parameter
	key        string
	bad        func(key, format string, args ...any)
}

func (c awsScopeCheck) compile(s Scope) awsScope {
	if len(s.Actions) == 0 {
		c.bad(c.key+"/actions", "name what it allows, such as [s3:GetObject]")
	}
	if len(s.Resources) == 0 {
		c.bad(c.key+"/resources", "name what it allows that on, such as [\"arn:%s:s3:::reports/*\"]", c.partition)
	}
	wild := false
	for i, a := range s.Actions {
		if !awsAction.MatchString(a) {
			c.bad(fmt.Sprintf("%s/actions/%d", c.key, i), "%q is not an action: write service:Action, such as s3:GetObject; wildcards may stand in the second part only", a)
		}
		wild = wild || strings.ContainsAny(a, "*?")
	}
	for i, r := range s.Resources {
		c.resource(fmt.Sprintf("%s/resources/%d", c.key, i), r, wild)
	}
	return awsScope{awsSorted(s.Actions), awsSorted(s.Resources)}
}

// resource checks one resource. wild says that an action has a wildcard: on
// every resource, that would be more than anybody can oversee.
func (c awsScopeCheck) resource(key, r string, wild bool) {
	m := awsResource.FindStringSubmatch(r)
	switch {
	case r != "*" && m == nil:
		c.bad(key, "%q is not a resource: give an ARN, with parameters and wildcards in its last part only, or \"*\"", r)
		return
	case r != "*" && m[1] != c.partition && (m[1] != "aws" || strings.HasPrefix(c.partition, "aws")):
		c.bad(key, "it is in the partition %s, and the role in %s: it would allow nothing", m[1], c.partition)
	case wild && (r == "*" || strings.Trim(m[2], "*?") == ""):
		c.bad(key, "it is every resource: write every action of the scope in full, or name the resources")
	case !awsPlain(r) || strings.Contains(r, ".."):
		c.bad(key, "it holds characters that an ARN can't have")
	case strings.Contains(awsReference.ReplaceAllString(r, ""), "$"):
		c.bad(key, "a parameter is written ${name}; AWS's own policy variables are not offered")
	}
	for _, m := range awsReference.FindAllStringSubmatch(r, -1) {
		c.reference(key, m[1])
	}
}

// reference wants a parameter that always has a value: nothing in its place
// would make another resource of it, "team-*" of "team-${team}*".
func (c awsScopeCheck) reference(key, name string) {
	p, known := c.parameters[name]
	switch {
	case !known:
		c.bad(key, "there is no parameter %q", name)
	case !p.Required:
		c.bad("parameters/"+name, "%s.resources names it: make it required", strings.ReplaceAll(c.key, "/", "."))
	case p.Pattern == nil || p.Pattern.MatchString(""):
		c.bad("parameters/"+name, "%s.resources names it: its pattern must not match an empty text", strings.ReplaceAll(c.key, "/", "."))
	}
}

func awsSorted(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }

// awsPlain says whether a text has only characters that AWS takes in a policy
// (up to U+00FF), and none that JSON escapes: its length is then what it looks
// like, and it can't be taken for anything else.
func awsPlain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return r > 0xff || unicode.IsControl(r) || r == '"' || r == '\\'
	})
}

// awsPartition gives the partition that a region is in.
func awsPartition(region string) string {
	for _, p := range [][2]string{
		{"cn-", "aws-cn"}, {"us-gov-", "aws-us-gov"}, {"us-isob-", "aws-iso-b"}, {"us-isof-", "aws-iso-f"},
		{"us-iso-", "aws-iso"}, {"eu-isoe-", "aws-iso-e"}, {"eusc-", "aws-eusc"},
	} {
		if strings.HasPrefix(region, p[0]) {
			return p[1]
		}
	}
	return "aws"
}

// Scopes gives the names of the scopes, sorted.
func (s *Spec) Scopes() []string { return slices.Sorted(maps.Keys(s.scopes)) }

// Digest is the digest of all of the spec, for broker.Entitlement.Effect.
func (s *Spec) Digest() audit.Digest {
	scopes := audit.NewObject()
	for name, scope := range s.scopes {
		scopes.Object(name, audit.NewObject().StringList("actions", scope.actions).StringList("resources", scope.resources))
	}
	o := audit.NewObject().String("role_arn", s.role.RoleARN).StringList("managed_policies", s.role.ManagedPolicies).
		String("external_id", s.role.ExternalID).String("endpoint", s.endpoint).Object("scopes", scopes)
	for key, set := range map[string]bool{"full_role": s.role.FullRole, "chain": s.role.Chain} {
		if set {
			o.String(key, "true")
		}
	}
	return audit.HashObject("accessbroker/effect/aws/v1", o)
}

// SessionPolicy gives the session policy of scopes with parameters, in
// canonical JSON (RFC 8785): one statement a scope, in the order of their
// names. There always is one: that of the full role allows everything, so that
// the role alone bounds the session. What the parameters or the length don't
// allow is refused.
func (s *Spec) SessionPolicy(scopes []string, parameters map[string]string) (string, error) {
	if s.role.FullRole && len(scopes) == 0 {
		return awsEverything, nil
	}
	if s.role.FullRole || len(scopes) == 0 {
		return "", refuseAWS("the entitlement's scopes have changed: file a new request")
	}
	var statements [][]byte
	for _, name := range awsSorted(scopes) {
		scope, ok := s.scopes[name]
		if !ok {
			return "", refuseAWS("the entitlement's scopes have changed: file a new request")
		}
		var resources []string
		for _, template := range scope.resources {
			r, err := s.fill(template, parameters)
			if err != nil {
				return "", err
			}
			resources = append(resources, r)
		}
		statements = append(statements, awsStatement(scope.actions, awsSorted(resources)))
	}
	policy := awsPolicy(statements)
	if n := s.length(policy); n > awsPolicyLength {
		return "", &broker.Refusal{Err: broker.ErrPolicyTooLarge, Detail: fmt.Sprintf("its session policy would have %d characters, and AWS takes %d: ask for fewer scopes, or for shorter parameters", n, awsPolicyLength)}
	}
	return policy, nil
}

// awsEverything is the session policy of the full role. A session may do what
// both its role and its session policy allow (IAM User Guide, "Session
// policies"), so it takes nothing away; a resource-based policy that names the
// role is not narrowed by it either, and one that names the session never is.
var awsEverything = awsPolicy([][]byte{awsStatement([]string{"*"}, []string{"*"})})

func awsStatement(actions, resources []string) []byte {
	return audit.NewObject().StringList("Action", actions).String("Effect", "Allow").StringList("Resource", resources).Bytes()
}

func awsPolicy(statements [][]byte) string {
	b := []byte(`{"Statement":[`)
	for i, statement := range statements {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, statement...)
	}
	return string(append(b, `],"Version":"2012-10-17"}`...))
}

// length is what AWS counts of a session policy.
func (s *Spec) length(policy string) int {
	return utf8.RuneCountInString(policy) + len(strings.Join(s.role.ManagedPolicies, ""))
}

// longest is the length of the session policy of all scopes, with parameters
// as long as they can be.
func (s *Spec) longest(parameters map[string]broker.Parameter) int {
	if s.role.FullRole {
		return s.length(awsEverything)
	}
	var statements [][]byte
	for _, name := range s.Scopes() {
		var resources []string
		for _, template := range s.scopes[name].resources {
			resources = append(resources, awsReference.ReplaceAllStringFunc(template, func(m string) string {
				return strings.Repeat("x", awsLongest(parameters[m[2:len(m)-1]]))
			}))
		}
		statements = append(statements, awsStatement(s.scopes[name].actions, resources))
	}
	return s.length(awsPolicy(statements))
}
