package publish_test

import (
	"testing"

	"github.com/lacunafs/lacuna/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }
