package policy

import (
	_ "embed"
	"fmt"
	"slices"
	"sync"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"

	"accessbroker.internal/broker"
)

//go:embed schema.cedarschema
var schemaText []byte

// Entity types of the schema.
const (
	typeWorkload    types.EntityType = "Workload"
	typeAgent       types.EntityType = "Agent"
	typePerson      types.EntityType = "Person"
	typePath        types.EntityType = "Path"
	typeTrustDomain types.EntityType = "TrustDomain"
	typeGroup       types.EntityType = "Group"
	typeSupplier    types.EntityType = "Supplier"
	typeEntitlement types.EntityType = "Entitlement"
	typeSystem      types.EntityType = "System"
	typeRequest     types.EntityType = "Request"
	typeParameters  types.EntityType = "Parameters"
	typeArguments   types.EntityType = "Arguments"
	typeBroker      types.EntityType = "Broker"
	typeAction      types.EntityType = "Action"
)

// actions lists the actions of the schema. The position of an action is its
// number in the index.
var actions = []broker.Action{
	broker.ActionRequest, broker.ActionApprove, broker.ActionView, broker.ActionRevoke,
	broker.ActionAudit, broker.ActionBlock, broker.ActionUsage, broker.ActionIntrospect, broker.ActionOperate,
}

func actionNumber(a broker.Action) int { return slices.Index(actions, a) }

var brokerSelf = types.NewEntityUID(typeBroker, "self")

// A cedarSchema is the schema in the forms that check policies.
type cedarSchema struct {
	*schemaTypes
	validator *validate.Validator
}

// compiledSchema compiles the embedded schema once. It can only fail if the schema
// itself is wrong.
var compiledSchema = sync.OnceValues(func() (*cedarSchema, error) {
	var s schema.Schema
	s.SetFilename("schema.cedarschema")
	if err := s.UnmarshalCedar(schemaText); err != nil {
		return nil, fmt.Errorf("parsing the schema: %w", err)
	}
	resolved, err := s.Resolve()
	if err != nil {
		return nil, fmt.Errorf("resolving the schema: %w", err)
	}
	return &cedarSchema{newSchemaTypes(resolved), validate.New(resolved, validate.WithStrict())}, nil
})
