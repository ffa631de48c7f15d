kubectl wait --for=condition=Available --timeout=3m deployment/aibrix-gateway-plugins -n aibrix-system
kubectl set image deployment/aibrix-gateway-plugins -n aibrix-system \
  gateway-plugin=public.ecr.aws/e6d8z6l9/gateway-plugins:neuron-nixl
# Set routing algorithm to 'pd' (prefill/decode disaggregation)
# NOTE: Use ROUTING_ALGORITHM, NOT AIBRIX_ROUTING_ALGORITHM
kubectl set env deployment/aibrix-gateway-plugins -n aibrix-system ROUTING_ALGORITHM=pd

# Set prefill request timeout (in seconds) - adjust based on model size
kubectl set env deployment/aibrix-gateway-plugins -n aibrix-system AIBRIX_PREFILL_REQUEST_TIMEOUT=600

# Reduce metrics scrape frequency (optional)
kubectl set env deployment/aibrix-gateway-plugins -n aibrix-system AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS=10000
kubectl rollout status deployment/aibrix-gateway-plugins -n aibrix-system
kubectl patch envoyextensionpolicy aibrix-gateway-plugins-extension-policy -n aibrix-system \
  --type='json' -p='[{"op": "replace", "path": "/spec/extProc/0/messageTimeout", "value": "600s"}]'
kubectl patch httproute llama31-8b-router -n aibrix-system \
  --type='json' -p='[{"op": "replace", "path": "/spec/rules/0/timeouts/request", "value": "600s"}]'
kubectl apply -f - <<EOF
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: BackendTrafficPolicy
metadata:
  name: aibrix-backend-timeout
  namespace: aibrix-system
spec:
  targetRefs:
  - group: gateway.networking.k8s.io
    kind: HTTPRoute
    name: aibrix-reserved-router
  timeout:
    http:
      connectionIdleTimeout: 600s
      maxConnectionDuration: 600s
      requestTimeout: 600s
EOF
kubectl apply -f - <<EOF
apiVersion: model.aibrix.ai/v1alpha1
kind: ModelAdapter
metadata:
  name: llama31-8b
  namespace: default
  labels:
    model.aibrix.ai/name: llama31-8b
spec:
  baseModel: llama31-8b
  artifactURL: "/var/mdl/llama31-8b"
  podSelector:
    matchLabels:
      role-name: prefill
EOF
